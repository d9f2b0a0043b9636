"""The geometry of painting in part: pure functions on arrays.

A mask of any form on a picture of any size becomes one region of the size that the model renders: as large as it must
be to hold what is painted with some of what is around it, not larger than the picture needs, in its own resolution
where that suffices. Where the region reaches beyond the picture, what lies there is painted too, and cut off.

What comes back is put into the picture through the mask, which is spread outward over a band. Every pixel that the
mask keeps (black) and the band does not reach has the bits that it had.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from PIL import Image

from services.diffusion.pictures import LATENT_PX
from services.diffusion.sources import Mask, Pixels, Source
from shared.contracts import Outpaint
from shared.media import PAINTED, PAINTED_FROM, extended

CONTEXT_SHARE = 0.25  # of the painted part's sides, on each side of it
MIN_CONTEXT_PX = 32
# Colors are compared on known pixels this close to the painted part: next to it, yet enough for a mean.
MATCH_PX = 8
MAX_SHIFT = 24  # levels of 255; a larger difference is not the autoencoder's, and moving it would spoil the picture


@dataclass(frozen=True, slots=True)
class Region:
    """A rectangle on a canvas, in its pixels; it may reach beyond the canvas's edges."""

    left: int
    top: int
    width: int
    height: int

    def inside(self, width: int, height: int) -> tuple[slice, slice]:
        """Return the rows and columns of a canvas of this size that it covers."""
        rows = slice(max(0, self.top), min(height, self.top + self.height))
        return rows, slice(max(0, self.left), min(width, self.left + self.width))


@dataclass(frozen=True, eq=False)
class Canvas:
    """A picture that is to be painted in part, and where that is rendered.

    pixels: uint8 (h, w, 3); mask: uint8 (h, w), painted from `PAINTED_FROM` on; size: width and height at which the
    region is rendered, multiples of 8; band_px: how far the painted part is blended into the known one.
    """

    pixels: Pixels
    mask: Pixels
    size: tuple[int, int]
    band_px: int = 0

    @classmethod
    def around(cls, pixels: Pixels, outpaint: Outpaint, size: tuple[int, int], band_px: int) -> "Canvas":
        """Return the canvas of a picture that is to go on beyond its edges; until then its edge pixels do."""
        _, mask = extended(pixels, outpaint)
        beyond = ((outpaint.top, outpaint.bottom), (outpaint.left, outpaint.right), (0, 0))
        return cls(np.pad(pixels, beyond, mode="edge"), mask, size, band_px)

    @cached_property
    def region(self) -> Region:
        """What is rendered."""
        return region_of(self.mask >= PAINTED_FROM, self.size, max(MIN_CONTEXT_PX, self.band_px))

    @cached_property
    def window(self) -> tuple[slice, slice]:
        """The rows and columns of the picture that the region covers."""
        height, width = self.mask.shape
        return self.region.inside(width, height)

    def source(self, strength: float = 1.0) -> Source:
        """Return the region at the size at which it is rendered."""
        region, (rows, columns) = self.region, self.window
        beyond = (
            (rows.start - region.top, region.top + region.height - rows.stop),
            (columns.start - region.left, region.left + region.width - columns.stop),
        )
        pixels = np.pad(self.pixels[rows, columns], (*beyond, (0, 0)), mode="edge")
        painted = np.pad(self.mask[rows, columns], beyond, constant_values=PAINTED) >= PAINTED_FROM
        return Source(_resized(pixels, self.size), covering(painted, self.size), strength)

    def placed(self, rendered: Pixels) -> Pixels:
        """Return what was rendered, uint8 (height, width, 3) of `size`, as it lies in the window, in its pixels."""
        region, (rows, columns) = self.region, self.window
        inner = np.s_[
            rows.start - region.top : rows.stop - region.top, columns.start - region.left : columns.stop - region.left
        ]
        return _resized(rendered, (region.width, region.height))[inner]

    def mixed(self, placed: Pixels, band_px: int) -> Pixels:
        """Return the whole picture with a window of these pixels, put in through the mask that falls over a band."""
        known, mask = self.pixels[self.window], self.mask[self.window]
        alpha = spread(mask, band_px)[..., None].astype(np.uint16)  # products below 2**16
        result = self.pixels.copy()
        result[self.window] = (known * (PAINTED - alpha) + placed * alpha + PAINTED // 2) // PAINTED
        return result

    def visible(self, band_px: int) -> Mask:
        """Return where, in the window, something of what is put in can be seen, if the mask falls over a band."""
        return spread(self.mask[self.window], band_px) > 0

    def blended(self, rendered: Pixels) -> Pixels:
        """Return the whole picture with what was rendered put into it, without any network."""
        known, mask = self.pixels[self.window], self.mask[self.window]
        return self.mixed(matched(self.placed(rendered), known, mask), self.band_px)


def region_of(painted: Mask, size: tuple[int, int], context_px: int) -> Region:
    """Return the region that is rendered at `size` (width, height) for what is painted, of the same aspect ratio.

    painted: (h, w), with one true pixel at least.
    """
    height, width = painted.shape
    left, right = _extent(painted, axis=1)
    top, bottom = _extent(painted, axis=0)
    context = max(context_px, round(CONTEXT_SHARE * max(right - left, bottom - top)))
    left, right = max(0, left - context), min(width, right + context)
    top, bottom = max(0, top - context), min(height, bottom + context)
    # Canvas pixels per rendered one: as many as the painted part needs, not fewer than one where there are enough.
    needed = max((right - left) / size[0], (bottom - top) / size[1], 1.0)
    per_pixel = min(needed, max(width / size[0], height / size[1]))
    region_width = max(right - left, round(size[0] * per_pixel))
    region_height = max(bottom - top, round(size[1] * per_pixel))
    return Region(
        left=_start((left + right) / 2, region_width, width),
        top=_start((top + bottom) / 2, region_height, height),
        width=region_width,
        height=region_height,
    )


def _extent(painted: Mask, axis: int) -> tuple[int, int]:
    places = np.unique(np.nonzero(painted)[axis])
    return int(places[0]), int(places[-1]) + 1


def _start(center: float, length: int, available: int) -> int:
    """Return where a region starts: inside what there is if it fits, else reaching beyond it equally."""
    if length > available:
        return (available - length) // 2
    return min(max(0, round(center - length / 2)), available - length)


def covering(painted: Mask, size: tuple[int, int]) -> Mask:
    """Return a mask at another size (width, height) that covers all that is painted, also for who sees latents only.

    A pixel is painted if any part of it is. Of each latent the first pixel decides (diffusers takes the nearest), so it
    is painted where any pixel of the latent is: a line that is thinner than a latent is not lost.
    """
    share = Image.fromarray(painted.astype(np.float32)).resize(size, Image.Resampling.BOX)
    return covering_latents(np.asarray(share) > 0)


def covering_latents(mask: Mask) -> Mask:
    """Return a mask of the size that is rendered, with each latent's first pixel painted if any of the latent is."""
    height, width = mask.shape
    latents = mask.reshape(height // LATENT_PX, LATENT_PX, width // LATENT_PX, LATENT_PX).any(axis=(1, 3))
    mask = mask.copy()
    mask[::LATENT_PX, ::LATENT_PX] |= latents
    return mask


def spread(mask: Pixels, band_px: int) -> Pixels:
    """Return a mask whose values fall evenly to black over a band around them; its own shades stay where they are more.

    Distances are counted in rows or columns, whichever are more.
    """
    grown, result = mask, mask
    for distance in range(1, band_px + 1):
        grown = _grown(grown)
        fallen = np.minimum(grown, round(PAINTED * distance / (band_px + 1)))
        result = np.maximum(result, grown - fallen)
    return result


def _grown(mask: Pixels) -> Pixels:
    """Return a mask where each pixel is as bright as the brightest of the nine around it."""
    rows = mask.copy()
    np.maximum(rows[1:], mask[:-1], out=rows[1:])
    np.maximum(rows[:-1], mask[1:], out=rows[:-1])
    grown = rows.copy()
    np.maximum(grown[:, 1:], rows[:, :-1], out=grown[:, 1:])
    np.maximum(grown[:, :-1], rows[:, 1:], out=grown[:, :-1])
    return grown


def matched(placed: Pixels, known: Pixels, mask: Pixels) -> Pixels:
    """Return a rendered picture moved to the mean color that is known next to its painted part.

    The autoencoder shifts colors by some levels, evenly over a picture; there, both pictures should be the same.
    """
    is_painted = mask >= PAINTED_FROM
    near = (spread(np.where(is_painted, PAINTED, 0).astype(np.uint8), MATCH_PX) > 0) & (mask == 0)
    if not near.any():
        return placed
    shift = np.rint(known[near].mean(axis=0) - placed[near].mean(axis=0))
    moved = placed.astype(np.int16) + np.clip(shift, -MAX_SHIFT, MAX_SHIFT).astype(np.int16)
    pixels: Pixels = np.clip(moved, 0, PAINTED).astype(np.uint8)
    return pixels


def _resized(pixels: Pixels, size: tuple[int, int]) -> Pixels:
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS))
