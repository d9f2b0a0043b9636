"""How much a restoration network removes: seams and PSNR of degraded holes in held-out scenes, before and after.

    python -m training.restoration.figures runs/restoration/export --sheet runs/restoration/sheet.png

A scene is degraded as a whole and shown through a mask, as a painted hole is; what is measured is the step of the error
across the mask's border, and the error inside it.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from services.diffusion.checkpoints import UnfitCheckpoint
from services.diffusion.restoration.restorer import Painting, Restorer
from training.data.degradations import Degradation, Pixels, Seams
from training.data.formats import DataError
from training.data.masks import DIFFRIR, draw_mask
from training.evaluation.seams import psnr, seam_error
from training.restoration.autoencoding import Autoencoded
from training.runs import seed_of
from training.world import Scene, draw, sample_scene

SIZE = 128
MASK_SCALE = SIZE / 400  # the masks' numbers are for squares of 400 pixels
BATCH = 16
SHEET_ROWS = 8


@dataclass(frozen=True, slots=True)
class Figures:
    """Means over scenes: steps in 8-bit levels, PSNR in dB inside the holes."""

    scenes: int
    brightness_step_before: float
    brightness_step_after: float
    color_step_before: float
    color_step_after: float
    psnr_before: float
    psnr_after: float


@dataclass(frozen=True, slots=True)
class Case:
    """A held-out scene with a degraded hole."""

    scene: Scene
    truth: Pixels
    mask: Pixels
    hole: Pixels  # the truth with the degraded picture in its hole
    painting: Painting


def cases(count: int, degradation: Degradation, seed: int) -> Iterator[Case]:
    """Make scenes of the held-out split; holes that are the whole picture, without a border, are drawn again."""
    made = number = 0
    while made < count:
        number += 1
        generator = np.random.default_rng(seed_of(seed, number))
        scene = sample_scene(seed_of(seed, number, "scene"), split="held_out")
        truth = draw(scene, SIZE)
        mask, _ = draw_mask(SIZE, SIZE, DIFFRIR.scaled(MASK_SCALE), generator)
        if mask.all():
            continue
        painted = degradation(truth, 1, generator)
        hole = np.where(mask[..., None] > 0, painted, truth)
        yield Case(scene, truth, mask, hole, Painting(painted, mask, truth, number))
        made += 1


def measure(restorer: Restorer, made: Sequence[Case]) -> Figures:
    """Return the figures of a network at scale 1."""
    restored: list[Pixels] = []
    for start in range(0, len(made), BATCH):
        restored += restorer.restore_batch([case.painting for case in made[start : start + BATCH]])
    return compared(made, restored)


def compared(made: Sequence[Case], restored: Sequence[Pixels]) -> Figures:
    """Return the figures of cases and of what became of them."""
    rows = []
    for case, after in zip(made, restored, strict=True):
        is_hole = case.mask > 0
        seams = [seam_error(picture, case.truth, is_hole) for picture in (case.hole, after)]
        ratios = [min(psnr(picture, case.truth, is_hole), 60.0) for picture in (case.hole, after)]  # equal is 60 dB
        rows.append([seam.brightness for seam in seams] + [seam.color for seam in seams] + ratios)
    return Figures(len(made), *(round(float(mean), 3) for mean in np.mean(rows, axis=0)))


def sheet(restorer: Restorer, made: Sequence[Case]) -> Image.Image:
    """Return rows of the truth, the mask over it, the degraded hole and the restored one."""
    rows = []
    for case in made[:SHEET_ROWS]:
        masked = np.where(case.mask[..., None] > 0, np.uint8(128), case.truth)
        after = restorer.restore_batch([case.painting])[0]
        rows.append(np.concatenate((case.truth, masked, case.hole, after), axis=1))
    return Image.fromarray(np.concatenate(rows, axis=0))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m training.restoration.figures",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, help="restoration checkpoint, at scale 1")
    parser.add_argument("--scenes", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--autoencoder", type=Path, help="folder of the autoencoder that the pictures go through first")
    parser.add_argument("--out", type=Path, help="JSON file for the figures, beside standard output")
    parser.add_argument("--sheet", type=Path, help="PNG file for a contact sheet")
    given = parser.parse_args(arguments)
    try:
        restorer = Restorer.load(given.folder)
        degradation = Autoencoded.load(given.autoencoder, Seams()) if given.autoencoder else Seams()
    except (UnfitCheckpoint, DataError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    made = list(cases(given.scenes, degradation, given.seed))
    text = json.dumps(asdict(measure(restorer, made)), indent=2) + "\n"
    sys.stdout.write(text)
    if given.out:
        given.out.write_text(text, encoding="utf-8")
    if given.sheet:
        sheet(restorer, made).save(given.sheet)
    return 0


if __name__ == "__main__":
    sys.exit(main())
