"""The guardian: ends the children when the launcher itself was killed and could not.

`python -m clients.local.guardian` reads `+<group>` and `-<group>` lines from the launcher. The end of that stream means
that the launcher is gone; whatever it had not reported as ended is ended then. It sits in a session of its own, so that
Ctrl-C does not reach it, and it holds the launcher's lock on the home until its work is done.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable

GRACE_S = 8.0  # for processes to end by themselves before SIGKILL
POLL_S = 0.05


class Guardian:
    """The launcher's side of the guardian."""

    def __init__(self, lock_fd: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "clients.local.guardian"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            pass_fds=[lock_fd],
            start_new_session=True,
            text=True,
        )

    def watch(self, group: int) -> None:
        """Take care of a process group."""
        self._tell(f"+{group}")

    def forget(self, group: int) -> None:
        """Leave a process group that has ended."""
        self._tell(f"-{group}")

    def close(self) -> None:
        """Let the guardian go; it ends what is still watched."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        self._process.wait()

    def _tell(self, line: str) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):  # somebody killed the guardian: the launcher works without it
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()


def signal_group(group: int, number: int) -> bool:
    """Send a signal to a process group; return whether anybody was there."""
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return False
    except PermissionError:  # only processes that changed their user
        return False
    return True


def end_groups(groups: Iterable[int], *, grace_s: float) -> None:
    """Ask the groups to end, the last one first, and kill what has not after the grace."""
    left = [group for group in reversed(list(groups)) if signal_group(group, signal.SIGTERM)]
    end = time.monotonic() + grace_s
    while left and time.monotonic() < end:
        time.sleep(POLL_S)
        left = [group for group in left if signal_group(group, 0)]
    for group in left:
        signal_group(group, signal.SIGKILL)


def main() -> int:
    """Follow the launcher's stream to its end; return the exit status."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    groups: list[int] = []
    for line in sys.stdin:
        group = int(line[1:])
        if line[0] == "+":
            groups.append(group)
        elif group in groups:
            groups.remove(group)
    end_groups(groups, grace_s=GRACE_S)
    return 0


if __name__ == "__main__":
    sys.exit(main())
