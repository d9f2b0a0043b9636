"""Read a picture back into its background and objects, by trying what would draw it.

Nothing is learned here. First every background is compared with the picture, and the best one's two tones are fitted
to it. Then each cell is compared with every object that it could hold, moved by a little and blurred by a little: the
color that explains the cell best follows in closed form by least squares, and the object whose best color leaves the
least is the one. How much it explains of what is not background tells an object from a smudge. The work is done at
half the size, where noise is averaged away and which is still twice as fine as the latents.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt
from PIL import Image

from training.world.drawing import SIZE, Floats, Pixels, background_of, coverage
from training.world.objects import (
    BACKGROUNDS,
    COLORS,
    PLACES,
    RGB,
    Background,
    Fill,
    Object,
    Pattern,
    Shape,
    Size,
    distance,
)

HALF = SIZE // 2
_REACH = 2  # pixels that an object may be away from its place; four of the picture's
_BLURS = (0, 2)  # times that a template is smoothed
_FAR = 110.0  # a pixel further than this from a background says no more against it
_NEAR = 70.0  # pixels that may be the background's when its tones are fitted
_LEAST_ENERGY = 110_000.0  # of an object: 40 half-size pixels that differ by 52
_IS_SHAPE, _IS_OBJECT = 0.72, 0.45  # share of a cell's difference that a shape, and that any object, must explain
_WRONG_COLOR = 130.0  # further than this from all colors is none of them


@dataclass(frozen=True, slots=True)
class Seen:
    """One object of a picture. `shape` is None for something that is there and is none of the shapes."""

    color: str
    shape: Shape | None
    size: Size
    fill: Fill
    place: str

    @classmethod
    def of(cls, item: Object) -> "Seen":
        """Return what the judge should see of an object."""
        return cls(item.color, item.shape, item.size, item.fill, item.place)


@dataclass(frozen=True, slots=True)
class Reading:
    """What is to be seen in a picture, objects in reading order."""

    background: Background
    objects: tuple[Seen, ...]


def read(pixels: Pixels) -> Reading:
    """Read a picture, uint8 (height, width, 3) of any size."""
    picture = _halved(pixels)
    background = _find_background(picture)
    empty = _fitted(picture, background)
    objects = (_find_object(picture, empty, place) for place in PLACES)
    return Reading(background, tuple(item for item in objects if item is not None))


def _halved(pixels: Pixels) -> Floats:
    if pixels.shape[:2] != (SIZE, SIZE):
        pixels = np.asarray(Image.fromarray(pixels).resize((SIZE, SIZE), Image.Resampling.LANCZOS))
    return _coarse(np.asarray(pixels, np.float32))


# The background


@cache
def _backgrounds() -> tuple[tuple[Background, ...], Floats]:
    """Return all backgrounds and their pictures, float32 (backgrounds, quarter, quarter, 3)."""
    every = tuple(Background(color, pattern) for color in BACKGROUNDS for pattern in Pattern)
    return every, np.stack([_coarse(background_of(background, HALF)) for background in every])


def _coarse(pixels: Floats) -> Floats:
    quarter = pixels.shape[0] // 2
    coarse: Floats = pixels.reshape(quarter, 2, quarter, 2, 3).mean(axis=(1, 3))
    return coarse


def _find_background(picture: Floats) -> Background:
    every, pictures = _backgrounds()
    away = np.sqrt(((pictures - _coarse(picture)) ** 2).sum(axis=-1))
    return every[int(np.minimum(away, _FAR).mean(axis=(1, 2)).argmin())]


def _fitted(picture: Floats, background: Background) -> Floats:
    """Return the background's picture with its tones as they are in this picture."""
    ideal = background_of(background, HALF)
    near = ((picture - ideal) ** 2).sum(axis=-1) < _NEAR**2
    if near.sum() < HALF:
        return ideal
    if background.pattern is Pattern.PLAIN:
        return np.broadcast_to(np.median(picture[near], axis=0), ideal.shape)
    shares = _shares(background.pattern)
    columns = np.stack([1 - shares, shares], axis=-1)
    tones, *_ = np.linalg.lstsq(columns[near], picture[near], rcond=None)
    fitted: Floats = (columns @ tones).astype(np.float32)
    return fitted


@cache
def _shares(pattern: Pattern) -> Floats:
    """Return how much of the second tone each pixel has, (half, half)."""
    background = Background("white", pattern)
    first, second = (tone[0] for tone in background.tones)
    return ((background_of(background, HALF)[..., 0] - first) / (second - first)).astype(np.float32)


# The objects


@dataclass(frozen=True)
class _Templates:
    """All objects of one cell: their masks by place and blur, (templates, pixels), and the masks' squares."""

    kinds: tuple[tuple[Shape, Size, Fill], ...]
    masks: Floats
    squares: Floats
    areas: npt.NDArray[np.float32]  # sums of the squares


def _kinds() -> Iterator[tuple[Shape, Size, Fill]]:
    for shape in Shape:
        for size in Size:
            yield shape, size, Fill.FILLED
            if size is not Size.SMALL:
                yield shape, size, Fill.OUTLINED


@cache
def _templates(cell: tuple[int, int]) -> _Templates:
    kinds, masks = [], []
    for kind in _kinds():
        mask = coverage(*kind, cell, HALF)
        for blur in range(max(_BLURS) + 1):
            if blur in _BLURS:
                for down, right in _shifts():
                    kinds.append(kind)
                    masks.append(_shifted(mask, down, right).ravel())
            mask = _smoothed(mask)
    stacked = np.stack(masks)
    squares = stacked**2
    return _Templates(tuple(kinds), stacked, squares, squares.sum(axis=1))


def _shifts() -> Iterator[tuple[int, int]]:
    for down in range(-_REACH, _REACH + 1):
        for right in range(-_REACH, _REACH + 1):
            if abs(down) + abs(right) <= _REACH:
                yield down, right


def _shifted(mask: Floats, down: int, right: int) -> Floats:
    height, width = mask.shape
    padded = np.pad(mask, _REACH)
    top, left = _REACH - down, _REACH - right
    return padded[top : top + height, left : left + width]


def _smoothed(mask: Floats) -> Floats:
    padded = np.pad(mask, 1)
    rows = (padded[:-2] + 2 * padded[1:-1] + padded[2:]) / 4
    return np.asarray((rows[:, :-2] + 2 * rows[:, 1:-1] + rows[:, 2:]) / 4, np.float32)


def _find_object(picture: Floats, empty: Floats, place: str) -> Seen | None:
    """Return what is in a cell.

    With background B, mask m and color c the cell is B + m (c - B). The least squares color is
    sum(m (P - B) + m^2 B) / sum(m^2), and what it leaves is sum |P - B + m B|^2 - sum(m^2) |c|^2.
    """
    cell = divmod(PLACES.index(place), 3)
    rows, columns = (slice(index * HALF // 3, -(-(index + 1) * HALF // 3)) for index in cell)
    behind = empty[rows, columns].reshape(-1, 3)
    difference = picture[rows, columns].reshape(-1, 3) - behind
    energy = float((difference**2).sum())
    if energy < _LEAST_ENERGY:
        return None
    templates = _templates(cell)
    from_picture = templates.masks @ np.column_stack([difference, (difference * behind).sum(axis=1)])
    from_behind = templates.squares @ np.column_stack([behind, (behind**2).sum(axis=1)])
    colors = np.clip((from_picture[:, :3] + from_behind[:, :3]) / templates.areas[:, None], 0, 255)
    left = (
        energy
        + 2 * from_picture[:, 3]
        + from_behind[:, 3]
        - 2 * (colors * (from_picture[:, :3] + from_behind[:, :3])).sum(axis=1)
        + (colors**2).sum(axis=1) * templates.areas
    )
    best = int(left.argmin())
    explained = 1 - float(left[best]) / energy
    red, green, blue = (round(float(value)) for value in colors[best])
    color, away = _nearest_color((red, green, blue))
    if explained < _IS_OBJECT or energy * explained < _LEAST_ENERGY or away > _WRONG_COLOR:
        return None
    shape, size, fill = templates.kinds[best]
    return Seen(color, shape if explained >= _IS_SHAPE else None, size, fill, place)


def _nearest_color(color: RGB) -> tuple[str, float]:
    """Return the name of the nearest color, and how far away it is."""
    away = {name: distance(color, rgb) for name, rgb in COLORS.items()}
    name = min(away, key=away.__getitem__)
    return name, away[name]
