"""What tests ask of processes: whether they run, and to wait until something is so."""

import time
from collections.abc import Callable
from pathlib import Path

LIMIT_S = 60.0


def is_running(pid: int) -> bool:
    """Return whether the process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def children_of(pid: int) -> set[int]:
    """Return the processes that a process has started and not yet waited for."""
    lists = Path(f"/proc/{pid}/task").glob("*/children")
    return {int(child) for one in lists for child in one.read_text().split()}


def until(condition: Callable[[], bool], *, limit_s: float = LIMIT_S, what: str = "the condition") -> None:
    """Wait until the condition holds; fail when it does not within the limit."""
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end, f"{what} did not come about in {limit_s:.0f} s"
        time.sleep(0.05)
