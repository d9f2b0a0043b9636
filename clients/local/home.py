"""The folder that holds everything of one local system, and the lock that keeps it to one launcher.

`run.json` tells others where the running system is. It is true only while the lock is held, so a file that a killed
launcher left behind misleads nobody.
"""

import contextlib
import fcntl
import os
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from pydantic import BaseModel, ValidationError

from clients.local.errors import LaunchError

LOCK_WAIT_S = 12.0  # a guardian may still be ending what a killed launcher left
_KEPT_LOGS = 3


class RunningService(BaseModel):
    """A child process."""

    pid: int
    log: Path
    status_url: str | None = None


class Run(BaseModel):
    """What `run.json` says of a running system."""

    url: str
    redis_url: str
    launcher_pid: int
    started_at: float
    models: str
    services: dict[str, RunningService]


class Home:
    """An open home folder; the lock is held until it is closed."""

    def __init__(self, path: Path, lock_fd: int) -> None:
        self.path = path
        self.lock_fd = lock_fd
        self.logs = path / "logs"
        self.valkey = path / "valkey"

    @classmethod
    def open(cls, path: Path, *, wait_s: float = LOCK_WAIT_S) -> "Home":
        """Make the folder and take its lock.

        Raises:
            LaunchError: another launcher holds it, or the folder cannot be written.
        """
        path = path.absolute()
        try:
            (path / "logs").mkdir(parents=True, exist_ok=True)
            (path / "valkey").mkdir(exist_ok=True)
            lock_fd = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise LaunchError(
                f"the folder {path} cannot be used ({error.strerror})",
                "Name another one with --home or LLMGA_HOME.",
            ) from error
        end = time.monotonic() + wait_s
        while not _lock(lock_fd):
            owner = _owner(path / "lock")
            if owner is not None or time.monotonic() > end:
                os.close(lock_fd)
                who = f"process {owner}" if owner else "another launcher"
                raise LaunchError(
                    f"{path} is in use by {who}",
                    "Use that system, stop it first, or name another folder with --home.",
                )
            time.sleep(0.1)
        os.ftruncate(lock_fd, 0)
        os.pwrite(lock_fd, f"{os.getpid()}\n".encode(), 0)
        return cls(path, lock_fd)

    def close(self) -> None:
        """Remove `run.json` and give up the lock."""
        with contextlib.suppress(FileNotFoundError):
            (self.path / "run.json").unlink()
        os.ftruncate(self.lock_fd, 0)
        os.close(self.lock_fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def write_run(self, run: Run) -> None:
        """Replace `run.json` in one step; it holds the queue's password, so only its owner may read it."""
        fresh = self.path / "run.json.new"
        fresh.unlink(missing_ok=True)
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(run.model_dump_json(indent=2) + "\n")
        fresh.rename(self.path / "run.json")

    def fresh_log(self, name: str) -> Path:
        """Return the path of a service's log, after moving those of earlier runs aside."""
        log = self.logs / f"{name}.log"
        for number in range(_KEPT_LOGS, 0, -1):
            older = log.with_suffix(f".log.{number - 1}") if number > 1 else log
            if older.exists():
                older.rename(log.with_suffix(f".log.{number}"))
        return log


def read_run(path: Path) -> Run | None:
    """Return what runs in the home folder, or None when nothing does."""
    try:
        lock_fd = os.open(path / "lock", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        if _lock(lock_fd) or _owner(path / "lock") is None:
            return None
        return Run.model_validate_json((path / "run.json").read_bytes())
    except (OSError, ValidationError):
        return None
    finally:
        os.close(lock_fd)


def _lock(lock_fd: int) -> bool:
    try:
        fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _owner(lock: Path) -> int | None:
    """Return the launcher's process id if it is alive."""
    try:
        pid = int(lock.read_text())
        os.kill(pid, 0)
    except (OSError, ValueError):
        return None
    return pid
