"""Examples of the restoration network: a good picture, a degraded one, and a mask (LLMGA.md §6.3).

A square is cut at random from a picture (mirrored to size where it is too small), flipped half of the time, degraded as
a whole and then cut to the training size at the same place, as degradations need room for their kernels.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import torch

from training.data.degradations import Degradation, Picture, Pixels, to_picture, to_pixels
from training.data.formats import DataError, OnError
from training.data.masks import MaskSpec, draw_mask
from training.data.pictures import load
from training.data.skipping import first_usable
from training.runs import Batch
from training.world import draw, sample_scene

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")  # what `training.data.pictures` reads
WORLD_SCENES = 1 << 24  # scenes of one pass
# Unsharp masking of the sharpened targets: Real-ESRGAN's numbers.
SHARPEN_SIZE, SHARPEN_WEIGHT, SHARPEN_FROM = 51, 0.5, 10 / 255


@dataclass(frozen=True, slots=True)
class Example:
    """truth, target: uint8 (h, w, 3), the target sharpened where the recipe says so; painted: uint8 (h / scale,
    w / scale, 3); mask: uint8 (h, w), 255 where it is painted."""

    truth: Pixels
    target: Pixels
    painted: Pixels
    mask: Pixels


@dataclass(frozen=True, slots=True)
class Folder:
    """The pictures below a folder."""

    paths: tuple[Path, ...]

    @classmethod
    def of(cls, folder: Path) -> "Folder":
        """List a folder.

        Raises:
            DataError: it has no pictures.
        """
        paths = tuple(sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES))
        if not paths:
            raise DataError(f"{folder}: there are no pictures ({', '.join(SUFFIXES)}); correct `pictures`")
        return cls(paths)

    def __len__(self) -> int:
        return len(self.paths)

    def picture(self, position: int) -> Pixels:
        """Return a picture of any size; a damaged one is an error that names the file."""
        return load(self.paths[position])


@dataclass(frozen=True, slots=True)
class World:
    """Scenes of the tiny world's train split."""

    size: int

    def __len__(self) -> int:
        return WORLD_SCENES

    def picture(self, position: int) -> Pixels:
        """Return the picture of a scene."""
        return draw(sample_scene(position, split="train"), self.size)


@dataclass(frozen=True, slots=True)
class Degraded:
    """The examples of a recipe.

    A picture that cannot be used stops the run, or the next one takes its place and `counts` has it.
    """

    source: Folder | World
    degradation: Degradation
    masks: MaskSpec
    scale: int
    picture_px: int
    crop_px: int
    sharpened: bool = False
    on_error: OnError = "stop"
    counts: Counter[str] = field(default_factory=Counter)

    def __len__(self) -> int:
        return len(self.source)

    def example(self, position: int, seed: int) -> Example:
        """Return a picture with its degraded twin and a mask; all that is random comes from the seed.

        Raises:
            DataError: the picture cannot be used, or with "skip" a hundred in a row cannot.
        """
        pixels = first_usable(self.source.picture, position, len(self), self.on_error, self.counts)
        generator = np.random.default_rng(seed)
        truth = cut(pixels, self.picture_px, generator)
        if generator.random() < 0.5:
            truth = np.ascontiguousarray(truth[:, ::-1])
        painted = self.degradation(truth, self.scale, generator)
        mask, _ = draw_mask(self.picture_px, self.picture_px, self.masks, generator)
        room = (self.picture_px - self.crop_px) // self.scale
        top, left = (int(offset) * self.scale for offset in generator.integers(room, size=2, endpoint=True))
        whole = np.s_[top : top + self.crop_px, left : left + self.crop_px]
        small = tuple(slice(part.start // self.scale, part.stop // self.scale) for part in whole)
        truth = truth[whole]
        return Example(truth, sharpen(truth) if self.sharpened else truth, painted[small], mask[whole])


def cut(pixels: Pixels, side: int, generator: np.random.Generator) -> Pixels:
    """Return a random square; a picture that is too small is mirrored at its right and bottom first."""
    missing = [max(0, side - length) for length in pixels.shape[:2]]
    if any(missing):
        pixels = np.pad(pixels, ((0, missing[0]), (0, missing[1]), (0, 0)), mode="reflect")
    top, left = (int(generator.integers(length - side, endpoint=True)) for length in pixels.shape[:2])
    square: Pixels = pixels[top : top + side, left : left + side]
    return square


def sharpen(pixels: Pixels) -> Pixels:
    """Return the picture with its stronger details raised, their surroundings faded in."""
    picture = to_picture(pixels)
    detail = picture - _blurred(picture)
    is_strong = _blurred((np.abs(detail) > SHARPEN_FROM).astype(np.float32))
    sharper = np.clip(picture + np.float32(SHARPEN_WEIGHT) * detail, 0, 1)
    return to_pixels(is_strong * sharper + (1 - is_strong) * picture)


def _blurred(picture: Picture) -> Picture:
    blurred = cv2.GaussianBlur(picture, (SHARPEN_SIZE, SHARPEN_SIZE), 0, borderType=cv2.BORDER_REFLECT_101)
    return np.asarray(blurred, dtype=np.float32)


def collate_for(ipr_channels: int) -> Callable[[list[Example], list[int]], Batch]:
    """Return the function that makes a batch: pictures in [0, 1], the mask as 0 and 1, and the diffusion's noise."""

    def collate(examples: list[Example], seeds: list[int]) -> Batch:
        truth = _stacked([example.truth for example in examples])
        target = _stacked([example.target for example in examples])
        painted = _stacked([example.painted for example in examples])
        mask = _stacked([example.mask[..., None] for example in examples])
        noise = [torch.randn(ipr_channels, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        return {"truth": truth, "target": target, "painted": painted, "mask": mask, "noise": torch.stack(noise)}

    return collate


def _stacked(pictures: Sequence[Pixels]) -> torch.Tensor:
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous().float().div_(255)
