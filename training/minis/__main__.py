"""`python -m training.minis TARGET`: a pair of mini checkpoints, TARGET/mllm and TARGET/sd15.

Both have the architectures and layouts of the real ones and random weights; the language model is then taught
the `<gen_image>` protocol for about half a minute (`--no-teach` leaves it random). A folder that is complete
is left as it is, so the command may be interrupted and run again.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

VERSION = 1  # raise it when a builder changes what it writes: older folders are then built again
TEACH_STEPS = 120
META = "meta.json"

Build = Callable[[Path], None]


class NotOurs(Exception):
    """The folder holds something that this command did not write."""


def ensure(folder: Path, build: Build, meta: dict[str, Any]) -> bool:
    """Build the folder unless a complete one with this `meta` is there; return whether it was built.

    It is written beside and renamed, so that it is complete or absent whenever this stops.

    Raises:
        NotOurs: the folder is there and has no `meta.json` of this command.
    """
    if folder.exists():
        found = _read_meta(folder)
        if found == meta:
            return False
        if found is None or found.get("builder") != meta["builder"]:
            raise NotOurs(f"{folder} was not written by this command; move it away or name another target")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as beside:
        fresh = Path(beside) / "fresh"
        build(fresh)
        (fresh / META).write_text(json.dumps(meta, indent=2) + "\n", encoding="utf-8")
        if folder.exists():
            os.rename(folder, Path(beside) / "old")
        os.rename(fresh, folder)
    return True


def _read_meta(folder: Path) -> dict[str, Any] | None:
    try:
        meta = json.loads((folder / META).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return meta if isinstance(meta, dict) else None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m training.minis", description=__doc__)
    parser.add_argument("target", type=Path, help="folder for the pair: TARGET/mllm and TARGET/sd15")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random weights (default 0)")
    parser.add_argument(
        "--teach",
        action=argparse.BooleanOptionalAction,
        default=True,
        help=f"teach the language model the <gen_image> protocol for {TEACH_STEPS} steps",
    )
    options = parser.parse_args(arguments)
    steps = TEACH_STEPS if options.teach else 0

    def mllm(folder: Path) -> None:
        from training.minis.mllm import build_mllm

        say(f"building the language model (seed {options.seed}, {steps} steps)")
        build_mllm(folder, seed=options.seed, teach_steps=steps, progress=lambda text: say(f"  {text}"))

    def sd15(folder: Path) -> None:
        from training.minis.diffusion import build_sd15

        say(f"building the diffusion model (seed {options.seed})")
        build_sd15(folder, seed=options.seed)

    meta = {"version": VERSION, "seed": options.seed}
    parts: list[tuple[str, Build, dict[str, Any]]] = [
        ("mllm", mllm, {"builder": "training.minis.mllm", **meta, "teach_steps": steps}),
        ("sd15", sd15, {"builder": "training.minis.diffusion", **meta}),
    ]
    for name, build, part_meta in parts:
        folder = options.target / name
        started = time.monotonic()
        try:
            is_new = ensure(folder, build, part_meta)
        except NotOurs as error:
            say(f"error: {error}")
            return 1
        say(f"{folder}: " + (f"built in {time.monotonic() - started:.0f} s" if is_new else "complete already"))
    return 0


def say(text: str) -> None:
    """Write a line to standard error at once."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
