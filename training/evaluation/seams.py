"""Seams: whether a filled hole stands out from what is around it.

Both measures compare with the true picture, so an edge that belongs there is no seam.
"""

from typing import NamedTuple

import numpy as np

from services.diffusion.seams import Mask, Pixels, brightness_and_color, steps_across


class Seam(NamedTuple):
    """The mean step across a mask's border, in 8-bit levels: of brightness, and of color without brightness."""

    brightness: float
    color: float


def seam_error(picture: Pixels, truth: Pixels, mask: Mask) -> Seam:
    """Return the step of the picture's error across the border of a hole.

    picture, truth: uint8 (height, width, 3); mask: bool (height, width), true in the hole.

    Raises:
        ValueError: the mask has no border.
    """
    steps = steps_across(picture.astype(np.float32) - truth.astype(np.float32), mask)
    if not len(steps):
        raise ValueError("the mask is empty or covers the whole picture")
    brightness, color = brightness_and_color(steps)
    return Seam(float(brightness.mean()), float(color.mean()))


def psnr(picture: Pixels, truth: Pixels, mask: Mask | None = None) -> float:
    """Return the peak signal-to-noise ratio in dB, in the hole alone where there is a mask."""
    square = (picture.astype(np.float64) - truth.astype(np.float64)) ** 2
    mean = float((square if mask is None else square[mask]).mean())
    return float("inf") if mean == 0 else 10 * float(np.log10(255**2 / mean))
