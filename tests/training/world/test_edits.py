import random

import pytest

from training.world.concepts import CONCEPTS
from training.world.edits import KINDS, TALKED_KINDS, Edit, edit_of, sample_edit
from training.world.objects import Background, Object, stands_out
from training.world.scenes import sample_scene, scene_of_concept
from training.world.splits import SPLITS, Split
from training.world.words import LANGUAGES, Language

COUNT = 400


def changed(edit: Edit) -> tuple[set[Object], set[Object]]:
    before, after = set(edit.before.objects), set(edit.after.objects)
    return before - after, after - before


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("language", LANGUAGES)
def test_edit_changes_one_thing_and_nothing_else(split: Split, language: Language) -> None:
    attribute = {"recolor": "color", "resize": "size", "move": "place", "reshape": "shape", "fill": "fill"}
    seen = set()
    for seed in range(COUNT):
        edit = sample_edit(seed, split, language)
        gone, new = changed(edit)
        seen.add(edit.kind)
        if edit.kind == "background":
            assert not gone
            assert not new
            assert edit.before.background != edit.after.background
            continue
        assert edit.before.background == edit.after.background
        assert (len(gone), len(new)) == {"remove": (1, 0), "add": (0, 1)}.get(edit.kind, (1, 1))
        if edit.kind in attribute:
            one, other = gone.pop(), new.pop()
            names = ("shape", "color", "size", "fill", "place")
            assert [name for name in names if getattr(one, name) != getattr(other, name)] == [attribute[edit.kind]]
    assert seen == set(KINDS)


def test_everything_stays_visible() -> None:
    for seed in range(COUNT):
        after = sample_edit(seed).after
        assert all(stands_out(item.color, after.background) for item in after.objects)


def test_instruction_means_one_object() -> None:
    checked = 0
    for seed in range(COUNT):
        edit = sample_edit(seed)
        gone, _ = changed(edit)
        instruction = edit.instruction.lower()
        for item in gone:
            if str(item.shape) not in instruction or edit.before.subject:
                continue
            meant = [other for other in edit.before.objects if other.shape is item.shape]
            if f"the {item.color} {item.shape}" in instruction:
                meant = [other for other in meant if other.color == item.color]
            if f"{item.shape} in the {item.place}" in instruction:
                meant = [other for other in meant if other.place == item.place]
            assert meant == [item], edit.instruction
            checked += 1
    assert checked > 100


def test_concepts_are_edited_by_the_names_of_their_parts() -> None:
    instructions = {sample_edit(seed).instruction.lower() for seed in range(2_000)}
    assert any("the roof" in instruction for instruction in instructions)


@pytest.mark.parametrize(
    ("language", "ways"),
    [
        ("en", ("with a", "without the", "on a")),
        ("zh", ("的", "不要", "背景是")),
    ],
)
def test_the_same_again_is_asked_for_with_one_change(language: Language, ways: tuple[str, ...]) -> None:
    seen: set[str] = set()
    for seed in range(COUNT):
        edit = edit_of(sample_scene(seed, concepts=0.5), seed, language=language, kinds=("again",))
        gone, new = changed(edit)
        assert len(gone) + len(new) + (edit.before.background != edit.after.background) in (1, 2)
        if gone and new:  # another color
            (one,), (other,) = gone, new
            assert (one.shape, one.size, one.fill, one.place) == (other.shape, other.size, other.fill, other.place)
        seen.update(way for way in ways if way in edit.instruction)
    assert seen == set(ways)


def test_a_house_has_a_roof_as_long_as_it_is_where_it_was() -> None:
    house = scene_of_concept(CONCEPTS["house"], random.Random(0), "train", background=Background("green"))
    assert house is not None
    painted = edit_of(house, 1, kinds=("recolor",)).after
    asked = {edit_of(painted, seed, kinds=("again",)).instruction.lower().rstrip(".") for seed in range(300)}
    assert any(words.endswith(f"with a {color} roof") for words in asked for color in ("red", "purple", "black"))
    moved = edit_of(painted, 1, kinds=("move",)).after
    assert not any("roof" in edit_of(moved, seed, kinds=TALKED_KINDS).instruction for seed in range(100))


def test_edit_is_a_pure_function_of_its_arguments() -> None:
    assert sample_edit(3, "held_out", "zh") == sample_edit(3, "held_out", "zh")
