import itertools

import pytest

from training.world.objects import (
    BACKGROUNDS,
    COLORS,
    PLACES,
    Background,
    Fill,
    Object,
    Pattern,
    Scene,
    Shape,
    Size,
    distance,
    stands_out,
)
from training.world.words import COLORS_ZH, FILLS_ZH, PATTERNS_ZH, PLACES_EN, PLACES_ZH, SHAPES_ZH, SIZES_ZH


def circle(place: str) -> Object:
    return Object(Shape.CIRCLE, "red", Size.SMALL, Fill.FILLED, place)


def test_no_two_colors_are_alike() -> None:
    closest = min(distance(a, b) for a, b in itertools.combinations(COLORS.values(), 2))
    assert closest > 180


def test_every_background_has_room_for_many_colors_and_never_for_its_own() -> None:
    for color, pattern in itertools.product(BACKGROUNDS, Pattern):
        background = Background(color, pattern)
        assert sum(stands_out(name, background) for name in COLORS) >= 8
        assert color not in COLORS or not stands_out(color, background)


def test_navy_is_no_background_for_black() -> None:
    assert not stands_out("black", Background("navy"))


@pytest.mark.parametrize(
    "places",
    [[], ["top left", "top left"], ["bottom left", "top left"], PLACES[:6]],
    ids=["none", "one cell twice", "wrong order", "six"],
)
def test_scene_refuses_objects_that_no_caption_could_describe(places: list[str]) -> None:
    with pytest.raises(ValueError, match="reading order"):
        Scene(Background("white"), tuple(map(circle, places)))


def test_every_attribute_has_words_in_both_languages() -> None:
    assert set(COLORS_ZH) == set(BACKGROUNDS)
    assert set(PLACES_ZH) == set(PLACES_EN) == set(PLACES)
    for words, kinds in ((SHAPES_ZH, Shape), (SIZES_ZH, Size), (FILLS_ZH, Fill), (PATTERNS_ZH, Pattern)):
        assert set(words) == set(kinds)
    chinese = [*COLORS_ZH.values(), *SHAPES_ZH.values(), *PLACES_ZH.values()]
    assert len(set(chinese)) == len(chinese)
