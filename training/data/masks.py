"""Masks of what is to be painted: irregular strokes, boxes and borders, for all stages that need one.

One generator serves three published sets of numbers: the language model's inpainting questions (LLMGA.md §7.2), stage 2
(§7.3) and the restoration network (§6.3). The numbers are those of 512 pixel pictures; `MaskSpec.scaled` shrinks
the ones in pixels for smaller pictures. All randomness comes from the numpy generator that is passed in.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

MaskKind = Literal["irregular", "box", "outpainting", "everything"]
KINDS: tuple[MaskKind, ...] = ("irregular", "box", "outpainting")

PAINTED = 255
_MAX_SEGMENTS = 5  # of one stroke
_FIRST_ANGLE = 0.01  # radians; the steps after it are whole radians
_MIN_LENGTH, _MIN_WIDTH = 10, 5  # pixels
_SIDE_PROBABILITY = 0.5


@dataclass(frozen=True, slots=True)
class MaskSpec:
    """Numbers of a mask distribution; lengths are pixels of the picture, times `pixel_scale`.

    `irregular`, `box` and `outpainting` are the probabilities of the three kinds; after the draw a mask is
    replaced by one of everything with the probability `everything`. Ranges include both ends.
    """

    irregular: float
    box: float
    outpainting: float
    padding: tuple[float, float]  # outpainting: share of the side that is painted
    everything: float = 0.0
    strokes: tuple[int, int] = (1, 5)
    max_angle: int = 4
    max_length: int = 240
    max_width: int = 100
    boxes: tuple[int, int] = (1, 4)
    box_side: tuple[int, int] = (35, 160)
    box_margin: int = 10
    pixel_scale: float = 1.0

    def __post_init__(self) -> None:
        if not math.isclose(self.irregular + self.box + self.outpainting, 1.0):
            raise ValueError("the probabilities of the kinds of masks must add up to 1")
        if not 0 < self.padding[0] <= self.padding[1] < 0.5:
            raise ValueError("padding must be below half a side: two opposite borders would leave nothing")

    def scaled(self, factor: float) -> "MaskSpec":
        """Return the spec for pictures whose sides are `factor` times those it was made for."""
        return replace(self, pixel_scale=self.pixel_scale * factor)


# Strokes are one to five everywhere: the published loop draws up to one more than its "times 1-4" (LLMGA.md §7.2).
MLLM_STAGE1 = MaskSpec(irregular=0.25, box=0.25, outpainting=0.5, padding=(0.35, 0.40))
SD_STAGE2 = MaskSpec(irregular=0.25, box=0.25, outpainting=0.5, padding=(0.25, 0.40), everything=0.25)
DIFFRIR = MaskSpec(irregular=0.35, box=0.30, outpainting=0.35, padding=(0.15, 0.40))


def draw_mask(
    height: int, width: int, spec: MaskSpec, generator: np.random.Generator
) -> tuple[NDArray[np.uint8], MaskKind]:
    """Draw a mask: uint8 (height, width), 255 where the picture is to be painted and 0 where it is known.

    At least one pixel is painted; the kind is returned because the questions of stage 1 depend on it.
    """
    kind = KINDS[int(generator.choice(len(KINDS), p=(spec.irregular, spec.box, spec.outpainting)))]
    if kind == "irregular":
        mask = _strokes(height, width, spec, generator)
    elif kind == "box":
        mask = _boxes(height, width, spec, generator)
    else:
        mask = _borders(height, width, spec, generator)
    if spec.everything and generator.random() < spec.everything:
        return np.full((height, width), PAINTED, dtype=np.uint8), "everything"
    return mask, kind


def _between(generator: np.random.Generator, bounds: tuple[int, int]) -> int:
    return int(generator.integers(bounds[0], bounds[1], endpoint=True))


def _strokes(height: int, width: int, spec: MaskSpec, generator: np.random.Generator) -> NDArray[np.uint8]:
    """Draw lines of one to five segments from random starts; every other stroke turns the other way."""
    mask = np.zeros((height, width), dtype=np.uint8)
    for stroke in range(_between(generator, spec.strokes)):
        x, y = int(generator.integers(width)), int(generator.integers(height))
        for _ in range(1 + int(generator.integers(_MAX_SEGMENTS))):
            angle = _FIRST_ANGLE + int(generator.integers(spec.max_angle))
            if stroke % 2 == 0:
                angle = 2 * math.pi - angle
            length = (_MIN_LENGTH + int(generator.integers(spec.max_length))) * spec.pixel_scale
            line_width = max(1, round((_MIN_WIDTH + int(generator.integers(spec.max_width))) * spec.pixel_scale))
            end_x = min(max(int(x + length * math.sin(angle)), 0), width - 1)
            end_y = min(max(int(y + length * math.cos(angle)), 0), height - 1)
            cv2.line(mask, (x, y), (end_x, end_y), PAINTED, line_width)
            x, y = end_x, end_y
    return mask


def _boxes(height: int, width: int, spec: MaskSpec, generator: np.random.Generator) -> NDArray[np.uint8]:
    """Fill rectangles that keep the margin; sides shrink to what a small picture holds."""
    mask = np.zeros((height, width), dtype=np.uint8)
    margin = min(round(spec.box_margin * spec.pixel_scale), (min(height, width) - 1) // 2)
    room = min(height, width) - 2 * margin
    longest = min(max(1, round(spec.box_side[1] * spec.pixel_scale)), room)
    shortest = min(max(1, round(spec.box_side[0] * spec.pixel_scale)), longest)
    for _ in range(_between(generator, spec.boxes)):
        box_width, box_height = _between(generator, (shortest, longest)), _between(generator, (shortest, longest))
        left = _between(generator, (margin, width - margin - box_width))
        top = _between(generator, (margin, height - margin - box_height))
        mask[top : top + box_height, left : left + box_width] = PAINTED
    return mask


def _borders(height: int, width: int, spec: MaskSpec, generator: np.random.Generator) -> NDArray[np.uint8]:
    """Paint borders: each side with probability a half, and one at random where none was drawn."""
    mask = np.zeros((height, width), dtype=np.uint8)
    chosen = generator.random(4) < _SIDE_PROBABILITY
    if not chosen.any():
        chosen[generator.integers(4)] = True
    left, right, top, bottom = (
        max(1, int(side * generator.uniform(*spec.padding))) if is_chosen else 0
        for side, is_chosen in zip((width, width, height, height), chosen, strict=True)
    )
    mask[:, :left] = PAINTED
    mask[:, width - right :] = PAINTED
    mask[:top] = PAINTED
    mask[height - bottom :] = PAINTED
    return mask
