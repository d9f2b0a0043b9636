"""One child process: started in a group of its own, watched, started again when it dies, and ended.

The whole group counts: vLLM's engine core is a grandchild, and nothing of a dead service may hold a port or memory when
the next one starts.
"""

import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from clients.local.guardian import Guardian, signal_group
from clients.local.probes import Health, Probe

BACKOFF_S = 0.5  # before the first restart, doubled for each one that follows, up to BACKOFF_MAX_S
BACKOFF_MAX_S = 15.0
STEADY_S = 60.0  # a child that lived this long starts counting afresh
EXIT_BAD_SETTINGS = 2  # of all our services; starting again would not help


class State(StrEnum):
    """Where a child is in its life."""

    WAITING = "waiting"
    STARTING = "starting"
    READY = "ready"
    RESTARTING = "restarting"
    STOPPING = "stopping"
    STOPPED = "stopped"


@dataclass(frozen=True)
class Spec:
    """How to run a service. `stop_s` is how long it may take to drain."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    probe: Probe
    stop_s: float
    status_url: str | None = None


@dataclass
class Service:
    """A service and its present process."""

    spec: Spec
    log: Path
    guardian: Guardian
    state: State = State.WAITING
    detail: str = ""
    failures: int = 0  # deaths in a row
    was_ready: bool = False
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)
    _started_at: float = 0.0
    _restart_at: float = 0.0

    @property
    def pid(self) -> int | None:
        """The process, which is also its group; None when there is none."""
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """Start the process."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                list(self.spec.command),
                env=dict(self.spec.environment),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.guardian.watch(self._process.pid)
        self._started_at = time.monotonic()
        self.state, self.detail = State.STARTING, "starting"

    def poll(self) -> int | None:
        """Notice a death, or start again when it is time to; return the exit status of a process that just died."""
        if self._process is None:
            if self.state is State.RESTARTING and time.monotonic() >= self._restart_at:
                self.start()
            return None
        status = self._process.poll()
        if status is None:
            return None
        self._bury()
        if self.state is State.STOPPING:
            self.state, self.detail = State.STOPPED, "stopped"
            return status
        now = time.monotonic()
        self.failures = 1 if now - self._started_at > STEADY_S else self.failures + 1
        pause_s = min(BACKOFF_S * 2 ** (self.failures - 1), BACKOFF_MAX_S)
        self.state, self.detail = State.RESTARTING, f"ended with {describe_exit(status)}"
        self._restart_at = now + pause_s
        return status

    def learn(self, pid: int | None, health: Health) -> None:
        """Take in what a probe found, unless it asked an earlier process."""
        if pid is None or pid != self.pid or self.state not in (State.STARTING, State.READY):
            return
        self.state = State.READY if health.is_ready else State.STARTING
        self.detail = health.detail
        self.was_ready = self.was_ready or health.is_ready

    def ask_to_stop(self) -> None:
        """Send SIGTERM to the process, which drains and ends its own children."""
        if self._process is None:
            self.state, self.detail = State.STOPPED, "stopped"
        elif self.state is not State.STOPPING:
            self.state, self.detail = State.STOPPING, "draining"
            self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End the whole group at once."""
        if self._process is not None:
            self.state = State.STOPPING
            signal_group(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self.poll()

    def _bury(self) -> None:
        assert self._process is not None
        signal_group(self._process.pid, signal.SIGKILL)
        self.guardian.forget(self._process.pid)
        self._process = None


def describe_exit(status: int) -> str:
    """Return the exit status of a process in words."""
    if status >= 0:
        return f"exit status {status}"
    try:
        return signal.Signals(-status).name
    except ValueError:
        return f"signal {-status}"
