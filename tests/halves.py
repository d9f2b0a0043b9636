"""All tests in two processes at once: `python -m tests.halves`, for two cores. Options go to both pytests.

Most tests keep one core busy, and some wait. The halves share nothing: each has servers and folders of its own. Lines
come as they are written; at the end each half says what failed. The exit status is the first that is not 0. With
anything but options, such as the tests to run, it is one pytest.
"""

import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
FIRST = ("tests/chaos", "tests/services/diffusion", "tests/training")
_writing = threading.Lock()


def main(arguments: Sequence[str]) -> int:
    """Run both halves; return the exit status."""
    pytest = [sys.executable, "-m", "pytest"]
    if not all(argument.startswith("-") for argument in arguments):
        return subprocess.run([*pytest, *arguments], cwd=ROOT, check=False).returncode
    halves = (FIRST, ("tests", *(f"--ignore={folder}" for folder in FIRST)))
    processes = [
        subprocess.Popen(
            [*pytest, *half, *arguments],
            cwd=ROOT,
            env=os.environ | {"PYTHONUNBUFFERED": "1", "GOMP_SPINCOUNT": "0"},  # a thread that spins is in the way
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        for half in halves
    ]
    readers = [threading.Thread(target=_tell, args=(process,)) for process in processes]
    for reader in readers:
        reader.start()
    try:
        for reader in readers:
            reader.join()
    except KeyboardInterrupt:  # both got it, too, and end in order
        for reader in readers:
            reader.join()
    return next((status for status in (process.wait() for process in processes) if status), 0)


def _tell(process: "subprocess.Popen[str]") -> None:
    """Print a half's lines, whole ones."""
    assert process.stdout is not None
    for line in process.stdout:
        with _writing:
            sys.stdout.write(line)
            sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
