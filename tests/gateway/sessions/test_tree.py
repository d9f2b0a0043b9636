"""What a tree of turns promises, whatever its shape."""

from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.sessions.tree import (
    MAX_HISTORY_BYTES,
    image_of,
    is_under_way,
    latest_picture,
    path_to,
    picture_by_words,
    told,
    turn_of,
)
from shared.contracts import JobStatus
from shared.contracts.generation import MAX_HISTORY_TURNS
from shared.contracts.sessions import PictureReference, Session
from tests.gateway.sessions.trees import line, session, turn

FEW = settings(max_examples=25, deadline=None)  # each tree has many turns
ENDS = [JobStatus.SUCCEEDED, JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELED]


@st.composite
def trees(draw: st.DrawFn, most: int = 9) -> Session:
    """Return any session whose turns have ended: each goes on from an earlier one, or begins anew."""
    turns = []
    for number in range(1, draw(st.integers(1, most)) + 1):
        parent = draw(st.integers(0, number - 1)) or None
        words = draw(st.sampled_from(["", "a house", "x" * 6_000]))
        image = None if words else "img_given"
        task = "text_to_image" if words else "similar"
        status = draw(st.sampled_from(ENDS))
        images = draw(st.integers(0, 3))
        turns.append(turn(number, parent, status=status, images=images, instruction=words, image=image, task=task))
    return session(*turns)


@FEW
@given(trees())
def test_the_path_to_a_turn_is_the_path_to_its_parent_and_the_turn(tree: Session) -> None:
    for one in tree.turns:
        path = path_to(tree, one)
        assert path[-1] is one
        assert path[:-1] == path_to(tree, turn_of(tree, one.parent or 0))
        assert path[0].parent is None
        assert [later.parent for later in path[1:]] == [earlier.id for earlier in path[:-1]]


@FEW
@given(trees(), st.data())
def test_a_turn_more_changes_no_path_that_was_there(tree: Session, data: st.DataObject) -> None:
    before = {one.id: [step.id for step in path_to(tree, one)] for one in tree.turns}
    parent = data.draw(st.integers(0, len(tree.turns))) or None
    grown = session(*tree.turns, turn(len(tree.turns) + 1, parent))
    assert {one.id: [step.id for step in path_to(grown, one)] for one in grown.turns[:-1]} == before
    assert [step.id for step in path_to(grown, grown.turns[-1])[:-1]] == before.get(parent or 0, [])


@FEW
@given(trees())
def test_what_is_told_is_the_end_of_the_path_without_failures_and_within_bounds(tree: Session) -> None:
    for one in tree.turns:
        path = path_to(tree, one)
        numbers, turns = told(path)
        candidates = [
            step.id for step in path if step.status is JobStatus.SUCCEEDED and step.request.instruction and step.prompt
        ]
        assert numbers == candidates[len(candidates) - len(numbers) :]
        assert len(turns) == len(numbers) <= MAX_HISTORY_TURNS
        assert sum(len(step.instruction.encode()) + len(step.prompt.encode()) for step in turns) <= MAX_HISTORY_BYTES


@FEW
@given(trees(), st.sampled_from(["the second one", "the last one", "第三张", "make it blue"]))
def test_a_picture_that_is_meant_is_one_of_the_path(tree: Session, words: str) -> None:
    for one in tree.turns:
        path = path_to(tree, one)
        for reference in (latest_picture(path), picture_by_words(path, words)):
            if reference is not None:
                assert reference.turn in [step.id for step in path]
                assert image_of(tree, reference) is not None


def test_ordinals_count_the_pictures_of_the_path() -> None:
    assert picture_by_words(line(3).turns, "the second one") == PictureReference(turn=2)
    assert picture_by_words(line(3).turns, "the last one") == PictureReference(turn=3)
    assert picture_by_words(line(3).turns, "the fourth one") is None


def test_ordinals_count_the_latest_turn_s_pictures_where_it_made_several() -> None:
    turns = [turn(1), turn(2, 1, images=3)]
    assert picture_by_words(turns, "the second one") == PictureReference(turn=2, index=1)
    assert picture_by_words(turns, "the fourth one") == PictureReference(turn=2, index=2)


def test_no_turn_and_no_picture_is_found_where_there_is_none() -> None:
    tree = line(2)
    assert turn_of(tree, 0) is turn_of(tree, 3) is None
    assert image_of(tree, PictureReference(turn=3)) is image_of(tree, PictureReference(turn=1, index=1)) is None
    assert latest_picture([turn(1, images=0)]) is None


def test_only_turns_that_have_ended_are_not_under_way() -> None:
    under_way = {status for status in JobStatus if is_under_way(turn(1, status=status))}
    assert under_way == {JobStatus.QUEUED, JobStatus.RUNNING, JobStatus.AWAITING_APPROVAL}
