import io
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageFilter

from training.evaluation.judge import Seen, read
from training.evaluation.scores import score_picture, total
from training.world import Scene, draw, sample_scene
from training.world.drawing import Pixels
from training.world.objects import PLACES, Background, Fill, Object, Pattern, Shape, Size
from training.world.scenes import visible_on
from training.world.splits import SPLITS, Split

COUNT = 150


def blurred(pixels: Pixels) -> Pixels:
    return np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(1.5)))


def noisy(pixels: Pixels) -> Pixels:
    noise = np.random.default_rng(0).normal(0, 12, pixels.shape)
    return (pixels + noise).clip(0, 255).astype(np.uint8)


def compressed(pixels: Pixels) -> Pixels:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=50)
    return np.asarray(Image.open(file))


def off_color(pixels: Pixels) -> Pixels:
    drifted: Pixels = (pixels * np.array([0.93, 1.04, 0.97]) + [6, -6, 8]).clip(0, 255).astype(np.uint8)
    return drifted


@pytest.mark.parametrize("split", SPLITS)
def test_rendered_scenes_are_read_without_mistake(split: Split) -> None:
    scenes = [sample_scene(seed, split) for seed in range(COUNT)]
    score = total([score_picture(scene, read(draw(scene))) for scene in scenes])
    assert score.wanted > 2.5 * COUNT
    assert score.exact / score.wanted >= 0.99
    assert score.whole / score.pictures >= 0.99
    assert score.extra == 0


@pytest.mark.parametrize("spoil", [blurred, noisy, compressed, off_color], ids=lambda spoil: spoil.__name__)
def test_what_an_autoencoder_does_to_a_picture_changes_nothing(spoil: Callable[[Pixels], Pixels]) -> None:
    scenes = [sample_scene(seed, "held_out") for seed in range(30)]
    score = total([score_picture(scene, read(spoil(draw(scene)))) for scene in scenes])
    assert score.placed / score.wanted >= 0.99
    assert score.shaped / score.wanted >= 0.98
    assert score.background / score.pictures >= 0.9
    assert score.extra == 0


def test_objects_may_be_a_little_off_their_place() -> None:
    white = Background("white")
    scenes = [replace(sample_scene(seed), background=white) for seed in range(60)]
    visible = [scene for scene in scenes if all(item.color in visible_on(white) for item in scene.objects)]
    assert len(visible) > 20
    score = total([score_picture(scene, read(np.roll(draw(scene), (2, -2), axis=(0, 1)))) for scene in visible])
    assert score.placed == score.wanted
    assert score.exact / score.wanted >= 0.98


def recolored(scene: Scene, item: Object) -> Object:
    colors = [color for color in visible_on(scene.background) if color != item.color]
    return replace(item, color=colors[len(scene.objects) % len(colors)])


def reshaped(scene: Scene, item: Object) -> Object:
    return replace(item, shape=next(shape for shape in Shape if shape is not item.shape))


def resized(scene: Scene, item: Object) -> Object:
    return replace(item, size=Size.MEDIUM if item.size is not Size.MEDIUM else Size.LARGE)


def elsewhere(scene: Scene, item: Object) -> Object:
    taken = {other.place for other in scene.objects}
    return replace(item, place=next(place for place in PLACES if place not in taken))


@pytest.mark.parametrize(
    ("corrupt", "placed", "shaped", "exact"),
    [
        (recolored, 1, 1, 1),
        (elsewhere, 1, 1, 1),
        (reshaped, 0, 1, 1),
        (resized, 0, 0, 1),
    ],
    ids=["recolored", "moved", "reshaped", "resized"],
)
def test_one_wrong_object_costs_exactly_what_is_wrong_about_it(
    corrupt: Callable[[Scene, Object], Object], placed: int, shaped: int, exact: int
) -> None:
    for seed in range(15):
        scene = sample_scene(seed)
        wrong = [corrupt(scene, scene.objects[0]), *scene.objects[1:]]
        wrong.sort(key=lambda item: PLACES.index(item.place))
        score = score_picture(scene, read(draw(replace(scene, objects=tuple(wrong)))))
        lost = (score.wanted - score.placed, score.wanted - score.shaped, score.wanted - score.exact)
        assert lost == (placed, shaped, exact)
        assert score.whole == 0


def test_missing_object_and_wrong_background_are_noticed() -> None:
    for seed in range(15):
        scene = sample_scene(seed)
        if len(scene.objects) == 1:
            continue
        score = score_picture(scene, read(draw(replace(scene, objects=scene.objects[1:]))))
        assert (score.wanted - score.placed, score.extra, score.whole) == (1, 0, 0)
        pattern = next(pattern for pattern in Pattern if pattern is not scene.background.pattern)
        other = Background(scene.background.color, pattern)
        assert score_picture(scene, read(draw(replace(scene, background=other)))).background == 0


def test_smudge_is_an_object_without_shape_or_none() -> None:
    rng = np.random.default_rng(0)
    for _ in range(30):
        pixels = draw(Scene(Background("white"), (Object(Shape.BAR, "red", Size.SMALL, Fill.FILLED, "top left"),)))
        blob = np.kron(rng.random((5, 5)) < 0.5, np.ones((8, 8), bool))
        pixels[44:84, 44:84][blob] = (30, 78, 226)
        seen = {item.place: item for item in read(pixels).objects}
        assert seen["top left"] == Seen("red", Shape.BAR, Size.SMALL, Fill.FILLED, "top left")
        assert "middle center" not in seen or seen["middle center"].shape is None


def test_object_between_two_cells_has_no_place() -> None:
    scene = Scene(Background("white"), (Object(Shape.STAR, "red", Size.LARGE, Fill.FILLED, "middle center"),))
    pixels = np.roll(draw(scene), 21, axis=1)
    assert all(item.shape is None for item in read(pixels).objects)


def test_noise_has_no_objects() -> None:
    rng = np.random.default_rng(0)
    for _ in range(10):
        coarse = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        pixels = np.asarray(Image.fromarray(coarse).resize((128, 128), Image.Resampling.BICUBIC))
        assert all(item.shape is None for item in read(pixels).objects)


def test_pictures_of_other_sizes_are_read_too() -> None:
    scene = sample_scene(2, "held_out")
    for size in (96, 256):
        assert {item.place for item in read(draw(scene, size)).objects} == {item.place for item in scene.objects}
