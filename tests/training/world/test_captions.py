import re

import pytest

from training.world import caption_of, sample_scene
from training.world.captions import background_sentence, object_sentence, read_background, read_objects, scene_of
from training.world.objects import Background, Fill, Object, Pattern, Scene, Shape, Size
from training.world.splits import SPLITS, Split

SCENE = Scene(
    Background("navy", Pattern.STRIPED),
    (
        Object(Shape.CIRCLE, "red", Size.LARGE, Fill.FILLED, "top left"),
        Object(Shape.STAR, "yellow", Size.MEDIUM, Fill.OUTLINED, "middle center"),
    ),
)
CAPTION = (
    "The background is a striped navy. "
    "There is a large filled red circle, and it is placed in the top left. "
    "There is a medium outlined yellow star, and it is placed in the middle center."
)


def test_caption_says_background_first_and_the_place_of_each_object_last() -> None:
    assert caption_of(SCENE) == CAPTION


@pytest.mark.parametrize("split", SPLITS)
def test_every_caption_leads_back_to_its_scene(split: Split) -> None:
    for seed in range(500):
        scene = sample_scene(seed, split)
        assert scene_of(caption_of(scene)) == scene


def test_sentences_have_fixed_lengths_so_that_pieces_of_75_tokens_begin_with_a_sentence() -> None:
    def tokens(text: str) -> int:
        return len(re.findall(r"\w+|[.,]", text))

    for seed in range(200):
        scene = sample_scene(seed)
        assert tokens(background_sentence(scene.background)) == 7
        assert {tokens(object_sentence(item)) for item in scene.objects} == {17}
    assert 7 + 4 * 17 == 75


def test_many_captions_are_longer_than_one_piece() -> None:
    long = sum(len(sample_scene(seed).objects) == 5 for seed in range(1_000))
    assert long > 250


def test_reading_keeps_what_is_in_the_grammar_and_drops_the_rest() -> None:
    text = CAPTION.replace("yellow star", "golden star").upper() + " There is a dog."
    assert read_objects(text) == list(SCENE.objects[:1])
    assert read_background(text) == SCENE.background
    assert read_background("A dog.") is None


@pytest.mark.parametrize(
    "caption",
    [
        "There is a large filled red circle, and it is placed in the top left.",
        CAPTION + " It is nice.",
        CAPTION.replace("middle center", "top left"),
        "The background is a striped navy.",
    ],
    ids=["no background", "more words", "one cell twice", "no object"],
)
def test_what_is_no_caption_of_a_scene_is_refused(caption: str) -> None:
    with pytest.raises(ValueError):
        scene_of(caption)
