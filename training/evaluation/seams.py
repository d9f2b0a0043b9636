"""Seams: whether a filled hole stands out from what is around it.

Both measures compare with the true picture, so an edge that belongs there is no seam.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from training.world.drawing import Floats, Pixels

Mask = npt.NDArray[np.bool_]

_AROUND = 3  # pixels in each direction over which an error is averaged: noise is no step

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601


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
    error = picture.astype(np.float32) - truth.astype(np.float32)
    inside, outside = _mean_over(error, mask), _mean_over(error, ~mask)
    border = _border(mask)
    if not border.any():
        raise ValueError("the mask is empty or covers the whole picture")
    step = (inside - outside)[border]
    brightness = step @ _LUMA
    color = np.linalg.norm(step - brightness[:, None], axis=1)
    return Seam(float(np.abs(brightness).mean()), float(color.mean()))


def psnr(picture: Pixels, truth: Pixels, mask: Mask | None = None) -> float:
    """Return the peak signal-to-noise ratio in dB, in the hole alone where there is a mask."""
    square = (picture.astype(np.float64) - truth.astype(np.float64)) ** 2
    mean = float((square if mask is None else square[mask]).mean())
    return float("inf") if mean == 0 else 10 * float(np.log10(255**2 / mean))


def _border(mask: Mask) -> Mask:
    """Return the pixels with a neighbor on the other side."""
    border = np.zeros_like(mask)
    for axis in (0, 1):
        first, second = (np.moveaxis(mask, axis, 0)[part] for part in (slice(None, -1), slice(1, None)))
        crossing = first != second
        view = np.moveaxis(border, axis, 0)
        view[:-1] |= crossing
        view[1:] |= crossing
    return border


def _mean_over(error: Floats, mask: Mask) -> Floats:
    """Return the mean of the error around each pixel over the pixels of a mask alone; 0 where there are none."""
    weights = mask.astype(np.float32)[..., None]
    mean: Floats = (_box(error * weights) / np.maximum(_box(weights), 1)).astype(np.float32)
    return mean


def _box(values: Floats) -> npt.NDArray[np.float64]:
    """Return the sum over the square around each pixel."""
    width = 2 * _AROUND + 1
    padded = np.pad(values.astype(np.float64), ((_AROUND + 1, _AROUND), (_AROUND + 1, _AROUND), (0, 0)))
    sums = padded.cumsum(axis=0).cumsum(axis=1)
    box: npt.NDArray[np.float64] = (
        sums[width:, width:] - sums[:-width, width:] - sums[width:, :-width] + sums[:-width, :-width]
    )
    return box
