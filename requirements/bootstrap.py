"""Make `.venv` complete: `python3.11 requirements/bootstrap.py`, which every `make` target does first.

Only the standard library, and syntax that older Pythons can still read, because they must be able to print that
they are too old. A stamp named after everything that decides the contents (these files, the interpreter, the
folder) makes the next call return at once; without it the environment is repaired and completed, not trusted.
"""

from __future__ import annotations

import csv
import hashlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PINS = ROOT / "requirements" / "cpu.txt"
TORCH = "torch==2.13.0"
OLDEST = (3, 11)
TRIED = (3, 11)


def main() -> int:
    """Bring the environment up to date; return the exit status."""
    if sys.version_info < OLDEST:
        return fail(
            "this project needs Python 3.11; {} is {}.{}.".format(sys.executable, *sys.version_info[:2]),
            "Install Python 3.11, then name it: make PYTHON=/path/to/python3.11 …",
        )
    stamp = VENV / f".stamp-{key()}"
    if stamp.exists():
        return 0
    if sys.version_info[:2] != TRIED:
        say("note: the pinned packages were tried on Python 3.11; this is {}.{}".format(*sys.version_info[:2]))
    started = time.monotonic()
    steps = [
        ("virtual environment in .venv", make_venv),
        (f"{TORCH} (a large download the first time)", install_torch),
        (f"{len(pins())} pinned packages (several minutes the first time)", install_pins),
        ("this project, editable", install_project),
    ]
    for number, (title, step) in enumerate(steps, 1):
        say(f"[{number}/{len(steps)}] {title}")
        problem = step()
        if problem:
            return fail(problem, "Nothing is lost: run the same command again to go on from here.")
    for old in VENV.glob(".stamp-*"):
        old.unlink()
    stamp.touch()
    say(f"environment complete after {time.monotonic() - started:.0f} s")
    return 0


def key() -> str:
    """Return a digest of what decides the contents of the environment."""
    digest = hashlib.sha256()
    for part in (sys.version, str(ROOT)):
        digest.update(part.encode())
    for path in (PINS, ROOT / "pyproject.toml", Path(__file__)):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def pins() -> list[str]:
    """Return the pinned requirements, without comments."""
    lines = PINS.read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def make_venv() -> str:
    """Create the environment, or keep one that works without the packages that were installed in part."""
    try:
        import ensurepip  # noqa: F401  (Debian splits it off into python3-venv)
        import venv  # noqa: F401
    except ImportError:
        return "Python's venv module is missing; on Debian and Ubuntu: apt-get install python{}.{}-venv".format(
            *sys.version_info[:2]
        )
    if VENV.exists() and not is_sound():
        say("      .venv is incomplete or was made elsewhere: making it again")
        shutil.rmtree(VENV)
    if not VENV.exists() and run([sys.executable, "-m", "venv", str(VENV)]) != 0:
        return "the virtual environment could not be made"
    for site in VENV.glob("lib/python*/site-packages"):
        for name in drop_damaged(site):
            say(f"      {name} was installed in part: installing it again")
    return ""


def is_sound() -> bool:
    """Return whether its Python and pip run, are of our version, and belong to this folder."""
    python, pip = VENV / "bin" / "python", VENV / "bin" / "pip"
    check = f"import sys, pip; sys.exit(sys.version_info[:2] != {tuple(sys.version_info[:2])!r})"
    try:
        if str(VENV) not in pip.read_text(encoding="utf-8"):
            return False
        return subprocess.run([str(python), "-c", check], stderr=subprocess.DEVNULL).returncode == 0
    except (OSError, UnicodeDecodeError):
        return False


def drop_damaged(site: Path) -> list[str]:
    """Remove the metadata of distributions with missing files, so that pip installs them; return their names."""
    damaged = []
    for left_over in site.glob("~*"):
        shutil.rmtree(left_over, ignore_errors=True)
    for info in site.glob("*.dist-info"):
        try:
            with (info / "RECORD").open(encoding="utf-8", newline="") as record:
                files = [row[0] for row in csv.reader(record) if row]
            complete = all((site / file).exists() for file in files if not file.endswith(".pyc"))
        except OSError:
            complete = False
        if not complete:
            shutil.rmtree(info)
            damaged.append(info.name.split("-")[0])
    return damaged


def install_torch() -> str:
    """Install torch with its dependencies: where pip is offered no CPU build, the CUDA build needs them."""
    return "" if pip("install", TORCH) == 0 else "torch could not be installed"


def install_pins() -> str:
    """Install the pinned list as it is."""
    return "" if pip("install", "--no-deps", "-r", str(PINS)) == 0 else "the packages could not be installed"


def install_project() -> str:
    """Install the project itself with the build tool of the list."""
    status = pip("install", "--no-deps", "--no-build-isolation", "-e", str(ROOT))
    return "" if status == 0 else "the project could not be installed"


def pip(*arguments: str) -> int:
    """Run pip, showing what it is busy with and hiding what is there already."""
    command = [
        str(VENV / "bin" / "python"),
        "-m",
        "pip",
        *arguments,
        "--no-input",
        "--disable-pip-version-check",
    ]
    if not sys.stdout.isatty():
        command += ["--progress-bar", "off"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, errors="replace")
    assert process.stdout is not None
    collected = 0
    for line in process.stdout:
        if line.startswith("Collecting "):
            collected += 1
            if collected % 20 == 0:
                say(f"      {collected} packages found")
        elif line.startswith("Installing collected packages"):
            say("      installing {} packages".format(line.count(",") + 1))
    return process.wait()


def run(command: list[str]) -> int:
    """Run a command and return its exit status."""
    return subprocess.run(command).returncode


def say(text: str) -> None:
    """Write a line at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def fail(problem: str, advice: str) -> int:
    """Say what is wrong and what to do; return the exit status of a failure."""
    sys.stderr.write(f"error: {problem}\n{advice}\n")
    return 1


if __name__ == "__main__":
    os.environ.pop("PIP_REQUIRE_VIRTUALENV", None)
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(fail("interrupted.", "Run the same command again to go on from here."))
