"""Ending while the service starts: at once, with everything that vLLM has started.

vLLM answers SIGTERM during its start by raising KeyboardInterrupt wherever the main thread is, and where that
is a callback the exception is lost and the start goes on. Nothing has to be saved yet, so the process is
simply ended. Once the server is up our plugin takes the signals over and drains.
"""

import contextlib
import logging
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

GRACE_S = 3.0  # for vLLM's processes to end by themselves
_TRACKER = b"resource_tracker"  # ends by itself, after it has removed the shared memory of the others


def descendants(pid: int) -> list[int]:
    """Return the ids of a process's children, their children and so on."""
    parents: dict[int, int] = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents[int(status.parent.name)] = int(status.read_text().rpartition(")")[2].split()[1])
    found: list[int] = []
    generation = [pid]
    while generation:
        generation = [child for child, parent in parents.items() if parent in generation]
        found += generation
    return found


def end_on_signals(exit_status: Callable[[], int]) -> None:
    """From now on, end the process and its descendants when SIGTERM or SIGINT arrives."""

    def end(number: int, frame: FrameType | None) -> None:
        logging.getLogger("llmga.mllm").info("ended during start-up")
        _end_all(descendants(os.getpid()))
        logging.shutdown()
        os._exit(exit_status())

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)


def _end_all(pids: list[int]) -> None:
    _send(pids, signal.SIGTERM)
    end = time.monotonic() + GRACE_S
    while time.monotonic() < end and any(map(_is_running, pids)):
        time.sleep(0.05)
    _send([pid for pid in pids if _is_running(pid)], signal.SIGKILL)


def _send(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def _is_running(pid: int) -> bool:
    """Return whether the process is there, no zombie, and none that is left to itself."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        return state != "Z" and _TRACKER not in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
