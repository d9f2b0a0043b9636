"""The tiny world's vocabulary: what a scene can consist of.

A scene is a background and one to five objects, each alone in a cell of a 3x3 grid. Every attribute is one common
word, so that a small text encoder has one token for it, and colors are as far apart as twelve can be. An object never
has a color that its background also has: see `stands_out`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cache
from itertools import pairwise

RGB = tuple[int, int, int]


class Shape(StrEnum):
    """What an object looks like."""

    CIRCLE = "circle"
    SQUARE = "square"
    TRIANGLE = "triangle"
    DIAMOND = "diamond"
    STAR = "star"
    HEART = "heart"
    CROSS = "cross"
    CRESCENT = "crescent"
    BAR = "bar"
    DOME = "dome"


class Size(StrEnum):
    """How large an object is in its cell."""

    SMALL = "small"
    MEDIUM = "medium"
    LARGE = "large"


class Fill(StrEnum):
    """Whether an object is a surface or a line."""

    FILLED = "filled"
    OUTLINED = "outlined"


class Pattern(StrEnum):
    """How a background uses its color; all but plain mix it with a second tone."""

    PLAIN = "plain"
    GRADIENT = "gradient"
    STRIPED = "striped"
    CHECKED = "checked"


COLORS: Mapping[str, RGB] = {
    "red": (222, 30, 36),
    "orange": (255, 140, 0),
    "yellow": (255, 228, 40),
    "green": (28, 150, 56),
    "blue": (30, 78, 226),
    "purple": (132, 40, 170),
    "pink": (255, 132, 196),
    "brown": (118, 68, 24),
    "cyan": (50, 214, 226),
    "white": (252, 252, 252),
    "gray": (136, 136, 136),
    "black": (12, 12, 12),
}
BACKGROUNDS: Mapping[str, RGB] = {**COLORS, "navy": (20, 26, 92)}  # navy is the night's, and no object's

ROWS = ("top", "middle", "bottom")
COLUMNS = ("left", "center", "right")
PLACES = tuple(f"{row} {column}" for row in ROWS for column in COLUMNS)  # in reading order
MAX_OBJECTS = 5

_TONE = 0.25  # share of white or black in a background's second tone
_DARK = 110  # mean of a color that has white mixed in rather than black
_APART = 150.0  # distance of an object's color from both tones: it stays visible behind a blurry autoencoder


@dataclass(frozen=True, slots=True)
class Background:
    """What is behind the objects."""

    color: str
    pattern: Pattern = Pattern.PLAIN

    @property
    def tones(self) -> tuple[RGB, RGB]:
        """The two colors of the pattern; the first is the one that has the name."""
        first = BACKGROUNDS[self.color]
        if self.pattern is Pattern.PLAIN:
            return first, first
        other = 255 if sum(first) / 3 < _DARK else 0
        red, green, blue = (round((1 - _TONE) * value + _TONE * other) for value in first)
        return first, (red, green, blue)


@dataclass(frozen=True, slots=True)
class Object:
    """One object in its cell."""

    shape: Shape
    color: str
    size: Size
    fill: Fill
    place: str

    @property
    def cell(self) -> tuple[int, int]:
        """Row and column."""
        row, column = self.place.split()
        return ROWS.index(row), COLUMNS.index(column)


@dataclass(frozen=True, slots=True)
class Subject:
    """What a scene is a picture of, where it is more than its objects: a concept in a setting."""

    concept: str
    setting: str = ""


@dataclass(frozen=True, slots=True)
class Scene:
    """A picture in words: a background and objects in reading order, no two in one cell."""

    background: Background
    objects: tuple[Object, ...]
    subject: Subject | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        places = [PLACES.index(item.place) for item in self.objects]
        if not 1 <= len(places) <= MAX_OBJECTS or any(a >= b for a, b in pairwise(places)):
            raise ValueError(f"a scene has 1 to {MAX_OBJECTS} objects in reading order, not at {places}")


@cache
def stands_out(color: str, background: Background) -> bool:
    """Return whether an object of this color is clearly visible on this background."""
    return all(distance(COLORS[color], tone) >= _APART for tone in background.tones)


def distance(first: RGB, second: RGB) -> float:
    """Return how different two colors look, 0 to about 765 (the "redmean" approximation of perceived distance)."""
    red = (first[0] + second[0]) / 2
    r, g, b = (float(a - b) for a, b in zip(first, second, strict=True))
    square = (2 + red / 256) * r * r + 4 * g * g + (2 + (255 - red) / 256) * b * b
    return float(square**0.5)
