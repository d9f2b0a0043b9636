"""Scenes as pixels.

A picture is its background with each object blended over its cell by a coverage mask in [0, 1]. Masks and
backgrounds are drawn once, at eight times the size, and kept: the picture of a scene is a pure function of it and
takes far less than a millisecond, which is what training on the fly needs. The judge reads pictures with the same
masks.
"""

import math
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from training.world.objects import COLORS, Background, Fill, Object, Pattern, Scene, Shape, Size

Pixels = npt.NDArray[np.uint8]  # (height, width, 3)
Floats = npt.NDArray[np.float32]
Point = tuple[float, float]

SIZE = 128  # pixels of a side
CELLS = 3
BANDS = 8  # stripes and checks of a side: two latents wide at 128 pixels
REACH = {Size.SMALL: 0.25, Size.MEDIUM: 0.35, Size.LARGE: 0.46}  # from the middle, in cells
LINE = 0.085  # an outline's width in cells: about half a latent, the least that survives the autoencoder
_FINE = 8  # samples of a pixel in each direction


def draw(scene: Scene, size: int = SIZE) -> Pixels:
    """Return the picture of a scene, uint8 (size, size, 3)."""
    pixels = background_of(scene.background, size).copy()
    for item in scene.objects:
        rows, columns = window(item, size)
        mask = coverage(item.shape, item.size, item.fill, item.cell, size)[..., None]
        patch = pixels[rows, columns]
        pixels[rows, columns] = patch + mask * (np.asarray(COLORS[item.color], np.float32) - patch)
    return np.rint(pixels).astype(np.uint8)


def window(item: Object, size: int) -> tuple[slice, slice]:
    """Return the rows and columns of the picture that an object's mask covers."""
    row, column = item.cell
    return _span(row, size), _span(column, size)


def _span(index: int, size: int) -> slice:
    return slice(math.floor(index * size / CELLS), math.ceil((index + 1) * size / CELLS))


@lru_cache(maxsize=512)
def background_of(background: Background, size: int) -> Floats:
    """Return a background alone, float32 (size, size, 3); shared, not to be written to."""
    first, second = (np.asarray(tone, np.float32) for tone in background.tones)
    rows, columns = np.indices((size, size))
    match background.pattern:
        case Pattern.PLAIN:
            share = np.zeros((size, size))
        case Pattern.GRADIENT:
            share = rows / (size - 1)
        case Pattern.STRIPED:
            share = columns * BANDS // size % 2
        case Pattern.CHECKED:
            share = (columns * BANDS // size + rows * BANDS // size) % 2
    pixels = (first + share[..., None] * (second - first)).astype(np.float32)
    pixels.setflags(write=False)
    return pixels


@lru_cache(maxsize=4_096)
def coverage(shape: Shape, size: Size, fill: Fill, cell: tuple[int, int], pixels: int) -> Floats:
    """Return how much of each pixel of its window an object covers, float32 in [0, 1]; shared, read-only."""
    rows, columns = _span(cell[0], pixels), _span(cell[1], pixels)
    height, width = rows.stop - rows.start, columns.stop - columns.start
    unit = pixels / CELLS
    middle = ((cell[1] + 0.5) * unit - columns.start, (cell[0] + 0.5) * unit - rows.start)
    canvas = Image.new("L", (width * _FINE, height * _FINE))
    pen = ImageDraw.Draw(canvas)

    def paint(reach: float, value: int) -> None:
        corners = [
            ((middle[0] + x * reach * unit) * _FINE - 0.5, (middle[1] + y * reach * unit) * _FINE - 0.5)
            for x, y in outline(shape)
        ]
        pen.polygon(corners, fill=value)

    paint(REACH[size], 255)
    if fill is Fill.OUTLINED:
        _hollow(canvas, round(LINE * unit * _FINE))
    fine = np.asarray(canvas, np.float32).reshape(height, _FINE, width, _FINE)
    mask: Floats = (fine.mean(axis=(1, 3)) / 255).astype(np.float32)
    mask.setflags(write=False)
    return mask


def _hollow(canvas: Image.Image, line: int) -> None:
    """Take away what is further than the line's width from the edge."""
    inside = np.asarray(canvas) > 0
    outside = np.pad(~inside, line, constant_values=True)
    near = np.zeros_like(inside)
    height, width = inside.shape
    for down in range(-line, line + 1):
        across = math.isqrt(line * line - down * down)
        # Any outside pixel within `across` columns of this row: a running count does it in one pass.
        counts = np.cumsum(outside[line + down : line + down + height], axis=1, dtype=np.int32)
        right = counts[:, line + across : line + across + width]
        left = (
            counts[:, line - across : line - across + width]
            - outside[line + down : line + down + height, line - across : line - across + width]
        )
        near |= right > left
    canvas.paste(Image.fromarray(((inside & near) * 255).astype(np.uint8)))


@lru_cache
def outline(shape: Shape) -> tuple[Point, ...]:
    """Return the corners of a shape around (0, 0), x to the right and y down, within [-1, 1]."""
    match shape:
        case Shape.CIRCLE:
            return _arc(0, 0, 1, 0, 360)
        case Shape.SQUARE:
            return (-0.88, -0.88), (0.88, -0.88), (0.88, 0.88), (-0.88, 0.88)
        case Shape.TRIANGLE:
            return (0, -0.95), (1, 0.88), (-1, 0.88)
        case Shape.DIAMOND:
            return (0, -1), (0.72, 0), (0, 1), (-0.72, 0)
        case Shape.STAR:
            radii = (1.08, 0.52)
            return tuple(_polar(0, 0.08, radii[turn % 2], 36 * turn - 90) for turn in range(10))
        case Shape.HEART:
            turns = [math.radians(degrees) for degrees in range(0, 360, 6)]
            return tuple(
                (
                    math.sin(t) ** 3,
                    -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)) / 16 - 0.1,
                )
                for t in turns
            )
        case Shape.CROSS:
            arm = 0.34
            corner = ((-arm, -1), (arm, -1), (arm, -arm), (1, -arm), (1, arm), (arm, arm))
            return (*corner, *((-x, -y) for x, y in corner))
        case Shape.CRESCENT:
            # A disk without a smaller one to its right; the two circles meet at +-48 degrees.
            tips = _polar(0.12, 0, 1, 48)
            inner = math.degrees(math.atan2(tips[1], tips[0] - 0.74))
            radius = math.hypot(tips[0] - 0.74, tips[1])
            return (*_arc(0.12, 0, 1, 48, 312), *reversed(_arc(0.74, 0, radius, inner, 360 - inner)))
        case Shape.BAR:
            return (-1, -0.42), (1, -0.42), (1, 0.42), (-1, 0.42)
        case Shape.DOME:
            return (*_arc(0, 0.5, 1, 180, 360),)


def _arc(x: float, y: float, radius: float, start: float, stop: float) -> tuple[Point, ...]:
    return tuple(_polar(x, y, radius, start + (stop - start) * step / 60) for step in range(61))


def _polar(x: float, y: float, radius: float, degrees: float) -> Point:
    return x + radius * math.cos(math.radians(degrees)), y + radius * math.sin(math.radians(degrees))
