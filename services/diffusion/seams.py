"""Seams: whether a painted part stands out along its border. Pure functions on arrays.

The service has no true picture to compare with, and a picture has edges of its own. So the steps across the mask's
border count only as far as they exceed those across two lines beside it, one inside the painted part and one outside:
a gradient, a texture or an object that crosses the border steps there just as much.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float32]
Sums = npt.NDArray[np.float64]
Places = tuple[npt.NDArray[np.intp], ...]  # rows and columns

AROUND_PX = 3  # in each direction over which a side's mean is taken: noise is no step
BESIDE_PX = 2 * AROUND_PX + 1  # from the border to the lines beside it: so far that they share no pixel with it

LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601


class SeamScore(NamedTuple):
    """The steps across a border beyond those beside it, in 8-bit levels.

    brightness: of the luma; color: of the color without it; gradient: of the luma's slope, which falls where the
    painted part is blurred and rises where it is noisy.
    """

    brightness: float
    color: float
    gradient: float

    @property
    def total(self) -> float:
        """The one number; 0 is no seam."""
        return self.brightness + self.color + self.gradient


def seam_score(picture: Pixels, mask: Mask) -> SeamScore | None:
    """Return the score of a picture, or None where the mask has no border.

    picture: uint8 (height, width, 3); mask: bool (height, width), true where it was painted.
    """
    colors = picture.astype(np.float32)
    brightness = colors @ LUMA
    values = np.concatenate((colors, _slope(brightness)[..., None]), axis=2)
    everywhere = _summed(_counted(values))
    at_border = _sizes(values, mask, everywhere)
    if at_border is None:
        return None
    lines = ~_grown(~mask), _grown(mask)
    beside = [sizes for line in lines if (sizes := _sizes(values, line, everywhere)) is not None]
    excess = at_border if not beside else np.maximum(at_border - np.max(beside, axis=0), 0)
    return SeamScore(*map(float, excess))


def steps_across(values: Floats, mask: Mask) -> Floats:
    """Return the mean inside minus the mean outside around each pixel of a mask's border, (border pixels, channels).

    values: float32 (height, width, channels). Without a border the result is empty.
    """
    return _steps(values, mask, _summed(_counted(values)))


def brightness_and_color(steps: Floats) -> tuple[Floats, Floats]:
    """Return the steps (n, 3) as the sizes of their brightness and of their color without it, each (n,)."""
    brightness = steps @ LUMA
    return np.abs(brightness), np.linalg.norm(steps - brightness[:, None], axis=1)


def _sizes(values: Floats, mask: Mask, everywhere: Sums) -> Floats | None:
    """Return the mean sizes of the steps in brightness, color and slope across a mask's border, if it has one."""
    steps = _steps(values, mask, everywhere)
    if not len(steps):
        return None
    brightness, color = brightness_and_color(steps[:, :3])
    sizes: Floats = np.stack((brightness, color, np.abs(steps[:, 3]))).mean(axis=1)
    return sizes


def _steps(values: Floats, mask: Mask, everywhere: Sums) -> Floats:
    """Return `steps_across`; everywhere: the sums over the values, counted, of the whole picture."""
    border = np.nonzero(_border(mask))
    inside = _around(_summed(_counted(values) * mask[..., None]), border, AROUND_PX)
    outside = _around(everywhere, border, AROUND_PX) - inside
    means = [side[:, :-1] / np.maximum(side[:, -1:], 1) for side in (inside, outside)]
    steps: Floats = (means[0] - means[1]).astype(np.float32)
    return steps


def _counted(values: Floats) -> Floats:
    """Return the values with a last channel that counts the pixels."""
    return np.concatenate((values, np.ones((*values.shape[:2], 1), np.float32)), axis=2)


def _slope(brightness: Floats) -> Floats:
    """Return the differences to the pixels below and to the right, as one length; zero at the last of each."""
    down = np.diff(brightness, axis=0, append=brightness[-1:])
    right = np.diff(brightness, axis=1, append=brightness[:, -1:])
    slope: Floats = np.hypot(down, right)
    return slope


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


def _grown(mask: Mask) -> Mask:
    """Return a mask that reaches further by the distance of the lines beside a border."""
    places = np.nonzero(np.ones_like(mask))
    grown: Mask = (_around(_summed(mask[..., None].astype(np.float32)), places, BESIDE_PX) > 0).reshape(mask.shape)
    return grown


def _summed(values: Floats) -> Sums:
    """Return the sums over all that is above and to the left of each corner of a pixel, (h + 1, w + 1, channels)."""
    sums: Sums = np.pad(values.astype(np.float64), ((1, 0), (1, 0), (0, 0))).cumsum(axis=0).cumsum(axis=1)
    return sums


def _around(sums: Sums, places: Places, reach_px: int) -> Sums:
    """Return the sums over the squares around pixels, as far as they lie in the picture, (places, channels)."""
    (top, bottom), (left, right) = (
        (np.maximum(at - reach_px, 0), np.minimum(at + reach_px + 1, length - 1))
        for at, length in zip(places, sums.shape[:2], strict=True)
    )
    around: Sums = sums[bottom, right] - sums[top, right] - sums[bottom, left] + sums[top, left]
    return around
