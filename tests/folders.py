"""All tests, two folders at once: `python -m tests.folders`, for two cores. Options go to every pytest.

Most tests keep one core busy, and some wait; torch has one thread in each, unless OMP_NUM_THREADS says otherwise or a
test asks for more. Folders share nothing: each has servers and files of its own. Those that take long come first, so
that both cores have work to the end. Lines come as they are written; the last ones say what became of each folder. The
exit status is that of a folder that failed. With anything but options, such as the tests to run, it is one pytest.
"""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
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
REST = ("tests", *(f"--ignore={folder}" for folder in LONG))
PYTEST = (sys.executable, "-m", "pytest")
FINE = (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED)  # an option may leave none of a folder
_writing = threading.Lock()


def main(arguments: Sequence[str]) -> int:
    """Run all folders; return the exit status."""
    if not all(argument.startswith("-") for argument in arguments):
        return subprocess.run([*PYTEST, *arguments], cwd=ROOT, check=False).returncode
    with ThreadPoolExecutor(AT_ONCE) as pool:
        runs = [pool.submit(_run, folder, arguments) for folder in (*((folder,) for folder in LONG), REST)]
        try:
            results = [run.result() for run in runs]
        except KeyboardInterrupt:  # each pytest got it, too, and ends in order
            pool.shutdown(cancel_futures=True)
            return pytest.ExitCode.INTERRUPTED
    sys.stdout.write("\n" + "".join(f"{told}\n" for told, _ in results))
    statuses = [status for _, status in results]
    if all(status == pytest.ExitCode.NO_TESTS_COLLECTED for status in statuses):
        return pytest.ExitCode.NO_TESTS_COLLECTED
    return next((status for status in statuses if status not in FINE), 0)


def _run(folder: tuple[str, ...], arguments: Sequence[str]) -> tuple[str, int]:
    """Run a folder's tests; return what became of them, in a line and as an exit status."""
    began = time.monotonic()
    process = subprocess.Popen(
        [*PYTEST, *folder, *arguments],
        cwd=ROOT,
        env={"OMP_NUM_THREADS": "1"} | os.environ | {"PYTHONUNBUFFERED": "1"},  # threads that meet are in the way
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    assert process.stdout is not None
    last = _tell(process.stdout).strip("= \n")
    name = "other tests" if folder is REST else folder[0]
    return f"{name}: {last} ({time.monotonic() - began:.0f} s)", process.wait()


def _tell(lines: IO[str]) -> str:
    """Print a folder's lines, whole ones; return the last."""
    line = ""
    for line in lines:
        with _writing:
            sys.stdout.write(line)
            sys.stdout.flush()
    return line


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
