"""`python -m tests.module_sizes`: modules that are too long to read in one sitting.

More than 600 lines fail; more than 400 are named, so that somebody splits them before they fail.
"""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LIMIT_LINES = 600
MANY_LINES = 400


def modules(root: Path = ROOT) -> list[Path]:
    """Return every Python file that git tracks or would track."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "*.py"]
    names = subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout.split("\0")
    return [root / name for name in names if name and (root / name).is_file()]


def main() -> int:
    """Report long modules; return the exit status."""
    sizes = sorted(((len(path.read_bytes().splitlines()), path) for path in modules()), reverse=True)
    for lines, path in sizes:
        if lines > MANY_LINES:
            verdict = "too long" if lines > LIMIT_LINES else "long"
            sys.stdout.write(f"{path.relative_to(ROOT)}: {lines} lines, {verdict}\n")
    sys.stdout.write(f"{len(sizes)} modules, at most {LIMIT_LINES} lines allowed\n")
    return int(any(lines > LIMIT_LINES for lines, _ in sizes))


if __name__ == "__main__":
    sys.exit(main())
