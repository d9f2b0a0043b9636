"""`python -m training.evaluation.sheets --url URL --out FOLDER`: one contact sheet per task, made by a running system.

Every picture comes through the REST interface, from held-out scenes that are drawn here: requests in, what the system
painted out, with the pictures on the way that `debug` keeps. A row is one job; what was asked stands above it.
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from services.diffusion.seams import Mask
from training.evaluation.figures import Sample, with_holes
from training.evaluation.serving import Gateway, Made, data_uri, gray
from training.world.captions import caption_of
from training.world.drawing import SIZE, Pixels, draw
from training.world.edits import sample_edit
from training.world.requests import sample_request
from training.world.scenes import sample_scene

ROWS = 5
COLORS = 256  # of a sheet's palette: a few kilobytes for each picture

_LINE_PX, _GAP_PX, _INK, _PAPER = 15, 4, (20, 20, 20), (255, 255, 255)
_CHARACTERS = 7  # pixels of a character of the built-in font, about
_OUTPAINT = {"left": 0, "top": 0, "right": 64, "bottom": 0}  # pixels


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """A job of a sheet: what is asked, the body that asks for it, and what else stands in front of the answer."""

    says: str
    body: dict[str, Any]
    before: tuple[Pixels, ...] = ()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m training.evaluation.sheets",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--url", required=True, help="a running gateway")
    parser.add_argument("--out", type=Path, required=True, help="folder of the sheets")
    parser.add_argument("--rows", type=int, default=ROWS, help=f"jobs of each sheet (default {ROWS})")
    parser.add_argument("--seed", type=int, default=0, help="number of the first scene (default 0)")
    parser.add_argument("--only", nargs="+", choices=SHEETS, default=list(SHEETS), help="these tasks (default: all)")
    options = parser.parse_args(arguments)
    if options.rows < 1:
        parser.error("--rows is at least 1")
    options.out.mkdir(parents=True, exist_ok=True)
    gateway = Gateway(options.url)
    for name in options.only:
        path = options.out / f"{name}.png"
        made = sheet(name, gateway, Sample(options.rows, seed=options.seed))
        made.quantize(COLORS).save(path, optimize=True)
        sys.stdout.write(f"{path}\n")
    return 0


def sheet(name: str, gateway: Gateway, sample: Sample) -> Image.Image:
    """Return a task's sheet."""
    rows = list(SHEETS[name](sample))
    made = gateway.make([row.body | {"debug": True} for row in rows])
    return drawn([(row.says, [*row.before, *_pictures(one)]) for row, one in zip(rows, made, strict=True)])


def drawn(rows: Sequence[tuple[str, Sequence[Pixels]]]) -> Image.Image:
    """Return rows of pictures, each below its words."""
    font = ImageFont.load_default(_LINE_PX - 3)
    width = max(sum(picture.shape[1] + _GAP_PX for picture in pictures) for _, pictures in rows)
    blocks = [(_wrapped(says, width), pictures) for says, pictures in rows]
    heights = [
        len(lines) * _LINE_PX + max(picture.shape[0] for picture in pictures) + 2 * _GAP_PX
        for lines, pictures in blocks
    ]
    image = Image.new("RGB", (width, sum(heights)), _PAPER)
    pen, top = ImageDraw.Draw(image), 0
    for (lines, pictures), height in zip(blocks, heights, strict=True):
        for number, line in enumerate(lines):
            pen.text((2, top + number * _LINE_PX), line, _INK, font=font)
        left, below = 0, top + len(lines) * _LINE_PX + _GAP_PX
        for picture in pictures:
            image.paste(Image.fromarray(picture), (left, below))
            left += picture.shape[1] + _GAP_PX
        top += height
    return image


def _wrapped(says: str, width: int) -> list[str]:
    lines = [""]
    for word in says.split():
        if lines[-1] and (len(lines[-1]) + 1 + len(word)) * _CHARACTERS > width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines


def _pictures(made: Made) -> list[Pixels]:
    """Return what a sheet shows of a job: mask, what was painted before it was restored, and the picture."""
    way = made.on_the_way
    return [*(way[name] for name in ("mask", "unrestored") if name in way), made.picture]


def _text_to_image(sample: Sample) -> Iterator[Row]:
    for number, seed in zip(sample.numbers(), sample.noise(), strict=True):
        words = sample_request(number, sample.split)[1].text
        yield Row(words, {"instruction": words, "seed": seed})


def _similar(sample: Sample) -> Iterator[Row]:
    for number, seed in zip(sample.numbers(), sample.noise(), strict=True):
        picture = draw(sample_scene(number, sample.split))
        yield Row("a similar picture", {"task": "similar", "image": data_uri(picture), "seed": seed}, (picture,))


def _inpaint(sample: Sample) -> Iterator[Row]:
    for scene, hole, seed in zip(*with_holes(sample), sample.noise(), strict=True):
        picture, caption = draw(scene), caption_of(scene)
        body = {"task": "inpaint", "image": data_uri(picture), "mask": data_uri(gray(hole)), "seed": seed}
        yield Row(caption, body | {"instruction": caption, "prompt_mode": "verbatim"}, (_without(picture, hole),))


def _outpaint(sample: Sample) -> Iterator[Row]:
    for number, seed in zip(sample.numbers(), sample.noise(), strict=True):
        scene = sample_scene(number, sample.split)
        kept = SIZE - _OUTPAINT["right"]
        picture, caption = draw(scene)[:, :kept], caption_of(scene)
        body = {"task": "outpaint", "image": data_uri(picture), "outpaint": _OUTPAINT, "seed": seed}
        yield Row(caption, body | {"instruction": caption, "prompt_mode": "verbatim"}, (picture,))


def _edit(sample: Sample) -> Iterator[Row]:
    for number, seed in zip(sample.numbers(), sample.noise(), strict=True):
        edit = sample_edit(number, sample.split)
        picture = draw(edit.before)
        body = {"task": "edit", "instruction": edit.instruction, "image": data_uri(picture), "seed": seed}
        yield Row(edit.instruction, body, (picture,))


def _without(picture: Pixels, hole: Mask) -> Pixels:
    return np.where(hole[..., None], np.uint8(0), picture)


SHEETS: dict[str, Callable[[Sample], Iterator[Row]]] = {
    "text_to_image": _text_to_image,
    "similar": _similar,
    "inpaint": _inpaint,
    "outpaint": _outpaint,
    "edit": _edit,
}

if __name__ == "__main__":
    sys.exit(main())
