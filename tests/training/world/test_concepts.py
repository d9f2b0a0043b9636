import random

from training.world import caption_of
from training.world.concepts import (
    COMPOSITIONS,
    CONCEPTS,
    SETTINGS,
    fits,
    groups_of,
    settings_of,
    visible_colors,
)
from training.world.objects import BACKGROUNDS, COLORS, MAX_OBJECTS, Background, Fill, Pattern, Shape, Size
from training.world.scenes import scene_of_concept

ANY_BACKGROUND = [Background(color, pattern) for color in BACKGROUNDS for pattern in Pattern]


def test_there_are_many_concepts_with_names_in_both_languages() -> None:
    assert len(CONCEPTS) >= 60
    assert len({concept.chinese for concept in CONCEPTS.values()}) == len(CONCEPTS)
    for concept in CONCEPTS.values():
        assert all("\u4e00" <= sign <= "\u9fff" for sign in concept.chinese)


def test_every_concept_is_a_scene_of_the_vocabulary() -> None:
    for concept in CONCEPTS.values():
        places = [part.place for part in concept.parts]
        assert len(set(places)) == len(places) <= MAX_OBJECTS
        for part in concept.parts:
            assert set(part.colors) <= set(COLORS)
            assert (part.size, part.fill) != (Size.SMALL, Fill.OUTLINED)


def test_no_two_concepts_look_the_same() -> None:
    looks = {
        tuple((part.shape, part.colors[0], part.size, part.fill, part.place) for part in concept.parts)
        for concept in CONCEPTS.values()
    }
    assert len(looks) == len(CONCEPTS)


def test_every_concept_can_be_drawn_in_several_ways() -> None:
    for concept in CONCEPTS.values():
        backgrounds = [background for background in ANY_BACKGROUND if fits(concept, background)]
        assert len(backgrounds) == 1 if concept.background else len(backgrounds) >= 8
        assert concept.background or len(settings_of(concept)) >= 3


def test_parts_that_belong_together_share_their_color() -> None:
    car = CONCEPTS["car"]
    wheels = [index for index, part in enumerate(car.parts) if part.shape is Shape.CIRCLE]
    assert tuple(wheels) in groups_of(car)
    for seed in range(20):
        scene = scene_of_concept(car, random.Random(seed), "train", setting="by day")
        assert scene is not None
        assert len({item.color for item in scene.objects if item.place.startswith("bottom")}) == 1


def test_snowman_at_night_stands_before_navy_under_the_moon() -> None:
    scene = scene_of_concept(CONCEPTS["snowman"], random.Random(0), "train", setting="at night")
    assert scene is not None
    assert caption_of(scene) == (
        "The background is a plain navy. "
        "There is a small filled white circle, and it is placed in the top center. "
        "There is a medium filled yellow crescent, and it is placed in the top right. "
        "There is a medium filled white circle, and it is placed in the middle center. "
        "There is a large filled white circle, and it is placed in the bottom center."
    )


def test_there_is_one_sun() -> None:
    for name in ("sunrise", "mountains", "solar system"):
        if "by day" not in settings_of(CONCEPTS[name]):
            continue
        scene = scene_of_concept(CONCEPTS[name], random.Random(0), "train", setting="by day")
        assert scene is not None
        assert len(scene.objects) == len(CONCEPTS[name].parts)
    tree = scene_of_concept(CONCEPTS["tree"], random.Random(0), "train", setting="by day")
    assert tree is not None
    assert "There is a medium filled yellow circle, and it is placed in the top left." in caption_of(tree)


def test_parts_never_have_a_color_that_the_background_hides() -> None:
    snowman = CONCEPTS["snowman"]
    assert not fits(snowman, Background("white"))
    assert visible_colors(snowman.parts[0], Background("white")) == ()
    assert scene_of_concept(snowman, random.Random(0), "train", background=Background("white")) is None


def test_usual_colors_are_kept_for_both_splits() -> None:
    assert ("white", "circle", "middle center") in COMPOSITIONS
    assert all(setting.extra is None or len(settings_of(CONCEPTS["tree"])) for setting in SETTINGS.values())


def test_names_in_sentences() -> None:
    names = [CONCEPTS[name].with_article for name in ("owl", "ufo", "sun", "cherries", "the flag of japan", "house")]
    assert names == ["an owl", "a ufo", "the sun", "cherries", "the flag of japan", "a house"]
