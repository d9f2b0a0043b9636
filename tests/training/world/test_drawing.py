import itertools

import numpy as np
import pytest

from training.world import draw, sample_scene
from training.world.drawing import LINE, background_of, coverage, window
from training.world.objects import COLORS, PLACES, Background, Fill, Object, Pattern, Scene, Shape, Size

WHITE = Background("white")


def alone(shape: Shape, size: Size, fill: Fill, place: str = "middle center") -> Scene:
    return Scene(WHITE, (Object(shape, "black", size, fill, place),))


def test_picture_is_a_pure_function_of_the_scene() -> None:
    scene = sample_scene(7)
    first = draw(scene)
    first[:] = 0  # a caller may write to what it got
    assert first.shape == (128, 128, 3)
    assert first.dtype == np.uint8
    np.testing.assert_array_equal(draw(scene), draw(sample_scene(7)))
    assert draw(scene).any()


@pytest.mark.parametrize("size", [64, 128, 200])
def test_object_stays_in_its_cell_and_has_its_color_inside(size: int) -> None:
    for shape, place in itertools.product(Shape, PLACES):
        item = Object(shape, "red", Size.LARGE, Fill.FILLED, place)
        pixels = draw(Scene(WHITE, (item,)), size)
        rows, columns = window(item, size)
        assert (pixels[rows, columns] == COLORS["red"]).all(axis=-1).any()
        pixels[rows, columns] = COLORS["white"]
        assert (pixels == COLORS["white"]).all()


def test_edges_are_smooth() -> None:
    mask = coverage(Shape.CIRCLE, Size.LARGE, Fill.FILLED, (1, 1), 128)
    assert ((mask > 0.05) & (mask < 0.95)).sum() > 50
    assert set(np.unique(draw(alone(Shape.CIRCLE, Size.LARGE, Fill.FILLED)))) > {12, 252}


def test_no_two_kinds_of_object_look_alike() -> None:
    kinds = [
        kind
        for kind in itertools.product(Shape, Size, Fill)
        if kind[1:] != (Size.SMALL, Fill.OUTLINED)  # never sampled: no room inside
    ]
    masks = [coverage(*kind, (1, 1), 128) for kind in kinds]
    for (first, one), (second, other) in itertools.combinations(zip(kinds, masks, strict=True), 2):
        overlap = np.minimum(one, other).sum() / np.maximum(one, other).sum()
        assert overlap < 0.85, f"{first} and {second} overlap by {overlap:.2f}"


def test_outline_is_a_closed_line_of_one_width() -> None:
    mask = coverage(Shape.SQUARE, Size.LARGE, Fill.OUTLINED, (1, 1), 128)
    middle = mask[mask.shape[0] // 2]
    assert middle.sum() == pytest.approx(2 * LINE * 128 / 3, abs=0.5)
    assert middle[len(middle) // 2] == 0


def test_patterns_have_the_named_tone_first_and_differ() -> None:
    pictures = {pattern: background_of(Background("blue", pattern), 128) for pattern in Pattern}
    for pixels in pictures.values():
        np.testing.assert_array_equal(pixels[0, 0], COLORS["blue"])
    assert (pictures[Pattern.PLAIN] == COLORS["blue"]).all()
    assert (pictures[Pattern.GRADIENT][0] == COLORS["blue"]).all()
    assert (np.diff(pictures[Pattern.GRADIENT][:, 0].sum(axis=-1)) < 0).all()
    assert (pictures[Pattern.STRIPED] == pictures[Pattern.STRIPED][:1]).all()
    assert (pictures[Pattern.CHECKED][:16] != pictures[Pattern.CHECKED][16:32]).any(axis=-1).all()
