import pytest

from training.world.edits import KINDS, Edit, sample_edit
from training.world.objects import Object, stands_out
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


def test_edit_is_a_pure_function_of_its_arguments() -> None:
    assert sample_edit(3, "held_out", "zh") == sample_edit(3, "held_out", "zh")
