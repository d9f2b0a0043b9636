"""What the chain leaves, put together as it ships: `mllm`, `sd15`, `sd15-inpainting` and `restoration`."""

import shutil
from dataclasses import dataclass
from pathlib import Path

MAX_BYTES = 40_000_000
_READABLE = 0o644  # safetensors writes files that nobody else may read


@dataclass(frozen=True, slots=True)
class Part:
    """One model of the pair. made: where the chain leaves it. run: the folder of its run."""

    name: str
    made: Path
    run: Path
    title: str


PARTS = (
    Part("mllm", Path("runs/tiny-again/checkpoint"), Path("runs/tiny-again"), "the language model"),
    Part("sd15", Path("runs/sd15/checkpoint"), Path("runs/sd15"), "the text-to-image model"),
    Part("sd15-inpainting", Path("runs/sd15-inpainting/checkpoint"), Path("runs/sd15-inpainting"), "inpainting"),
    Part("restoration", Path("runs/restoration/export"), Path("runs/restoration/joint"), "the restoration network"),
)


class TooLarge(Exception):
    """The pair is larger than what ships."""


def put_together(folder: Path, target: Path) -> list[str]:
    """Copy the parts that the chain has made in a folder to the target; return their names.

    A part's card and figures, which are there already, stay.

    Raises:
        TooLarge: the target would hold more than `MAX_BYTES`.
    """
    found = []
    for part in PARTS:
        made, run = folder / part.made, folder / part.run
        if not made.is_dir():
            continue
        copied = target / part.name
        for file in sorted(path for path in made.rglob("*") if path.is_file()):
            place = copied / file.relative_to(made)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, place)
            place.chmod(_READABLE)
        for name in ("meta.json", "losses.png"):
            if (run / name).is_file():
                shutil.copyfile(run / name, copied / name)
        found.append(part.name)
    size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    if size > MAX_BYTES:
        raise TooLarge(f"{target} has {size / 1e6:.1f} MB, more than the {MAX_BYTES / 1e6:.0f} MB that ship")
    return found
