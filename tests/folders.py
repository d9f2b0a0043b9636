"""All tests, two folders at once: `python -m tests.folders`, for two cores. Options go to every pytest.

Most tests keep one core busy, and some wait. Folders share nothing: each has servers and files of its own. Those that
take long come first, so that both cores have work to the end. Lines come as they are written; the last ones say what
became of each folder. The exit status is that of a folder that failed. With anything but options, such as the tests to
run, it is one pytest.
"""

import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import pytest

ROOT = Path(__file__).parents[1]
AT_ONCE = 2
LONG = (
    "tests/training",
    "tests/services/diffusion",
    "tests/services/mllm",
    "tests/gateway",
    "tests/integration",
    "tests/chaos",
    "tests/shared",
)
PYTEST = (sys.executable, "-m", "pytest")
FINE = (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED)  # an option may leave none of a folder
_writing = threading.Lock()


def main(arguments: Sequence[str]) -> int:
    """Run all folders; return the exit status."""
    if not all(argument.startswith("-") for argument in arguments):
        return subprocess.run([*PYTEST, *arguments], cwd=ROOT, check=False).returncode
    folders: queue.SimpleQueue[tuple[str, ...]] = queue.SimpleQueue()
    for folder in LONG:
        folders.put((folder,))
    folders.put(("tests", *(f"--ignore={folder}" for folder in LONG)))
    runs: list[tuple[str, int]] = []
    runners = [threading.Thread(target=_run_folders, args=(folders, arguments, runs)) for _ in range(AT_ONCE)]
    for runner in runners:
        runner.start()
    for runner in runners:
        while runner.is_alive():
            try:
                runner.join()
            except KeyboardInterrupt:  # each pytest got it, too, and ends in order
                _empty(folders)
    sys.stdout.write("\n" + "".join(f"{told}\n" for told, _ in runs))
    statuses = [status for _, status in runs]
    if all(status == pytest.ExitCode.NO_TESTS_COLLECTED for status in statuses):
        return pytest.ExitCode.NO_TESTS_COLLECTED
    return next((status for status in statuses if status not in FINE), 0)


def _run_folders(
    folders: "queue.SimpleQueue[tuple[str, ...]]", arguments: Sequence[str], runs: list[tuple[str, int]]
) -> None:
    """Run one folder after another, and add what became of it, while there are any."""
    while True:
        try:
            folder = folders.get_nowait()
        except queue.Empty:
            return
        began = time.monotonic()
        process = subprocess.Popen(
            [*PYTEST, *folder, *arguments],
            cwd=ROOT,
            env=os.environ | {"PYTHONUNBUFFERED": "1", "GOMP_SPINCOUNT": "0"},  # a thread that spins is in the way
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        assert process.stdout is not None
        last = _tell(process.stdout).strip("= \n")
        name = folder[0] if len(folder) == 1 else "other tests"
        runs.append((f"{name}: {last} ({time.monotonic() - began:.0f} s)", process.wait()))


def _tell(lines: IO[str]) -> str:
    """Print a folder's lines, whole ones; return the last."""
    line = ""
    for line in lines:
        with _writing:
            sys.stdout.write(line)
            sys.stdout.flush()
    return line


def _empty(folders: "queue.SimpleQueue[tuple[str, ...]]") -> None:
    while not folders.empty():
        folders.get_nowait()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
