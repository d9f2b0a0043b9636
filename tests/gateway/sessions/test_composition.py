"""A turn becomes a request."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.sessions.composition import Composed, compose
from shared.contracts import HistoryTurn, JobStatus, Task
from shared.contracts.sessions import PictureReference, Session, TurnRequest
from shared.errors import InvalidRequest, TurnUnderWay
from tests.gateway.sessions.test_tree import FEW, trees
from tests.gateway.sessions.trees import image, line, offers, session, turn


def composed(tree: Session, *, able: Any = None, **fields: Any) -> Composed:
    return compose(TurnRequest.model_validate(fields), tree, able or offers())


def refused(tree: Session, **fields: Any) -> set[tuple[str, str]]:
    with pytest.raises(InvalidRequest) as refusal:
        composed(tree, **fields)
    return {(problem.field, problem.code) for problem in refusal.value.errors}


def test_the_first_turn_is_a_request_of_its_own() -> None:
    first = composed(line(0), instruction="draw a house", seed=3)
    assert (first.request.task, first.request.seed, first.request.history) == (Task.TEXT_TO_IMAGE, 3, ())
    assert (first.parent, first.source, first.history, first.task_chosen_by) == (None, None, [], "session")


def test_a_turn_without_a_renderer_of_edits_writes_the_prompt_anew_from_the_words_of_its_path() -> None:
    second = composed(line(2), instruction="with a red roof")
    assert (second.request.task, second.request.image, second.parent) == (Task.TEXT_TO_IMAGE, None, 2)
    assert second.request.history == (
        HistoryTurn(instruction="turn 1", prompt="prompt 1"),
        HistoryTurn(instruction="turn 2", prompt="prompt 2"),
    )
    assert second.history == [1, 2]
    assert second.source is not None
    assert (second.source.turn, second.source.chosen_by) == (2, "latest")


def test_a_turn_edits_the_latest_picture_where_somebody_renders_edits() -> None:
    second = composed(line(2), able=offers([Task.TEXT_TO_IMAGE, Task.EDIT]), instruction="with a red roof")
    assert (second.request.task, second.request.image) == (Task.EDIT, image(2).id)
    assert (second.history, second.task_chosen_by) == ([1, 2], "session")


def test_an_edit_that_the_language_model_does_not_write_is_not_chosen() -> None:
    able = offers([Task.TEXT_TO_IMAGE, Task.EDIT], [Task.TEXT_TO_IMAGE])
    assert composed(line(1), able=able, instruction="at night").request.task is Task.TEXT_TO_IMAGE


def test_a_branch_knows_nothing_of_the_other_one() -> None:
    tree = session(turn(1), turn(2, 1), turn(3, 1))
    assert composed(tree, instruction="at night", parent=2).history == [1, 2]
    assert composed(tree, instruction="at night").history == [1, 3]
    assert composed(tree, instruction="a boat", parent=0).history == []
    assert composed(tree, instruction="a boat", parent=0).parent is None


def test_words_choose_an_earlier_picture_and_what_was_said_up_to_it() -> None:
    again = composed(line(3), instruction="the second one, at night")
    assert again.source is not None
    assert (again.source.turn, again.source.chosen_by, again.history, again.parent) == (2, "words", [1, 2], 3)


def test_a_client_chooses_any_picture_of_the_session() -> None:
    tree = session(turn(1), turn(2, 1, images=4), turn(3, 1))
    able = offers([Task.TEXT_TO_IMAGE, Task.EDIT])
    again = composed(tree, able=able, instruction="the last one", refers_to={"turn": 2, "index": 3})
    assert again.source is not None
    assert (again.request.image, again.source.chosen_by, again.history) == (image(2, 3).id, "client", [1, 2])


def test_a_client_may_tell_a_history_of_its_own_or_none() -> None:
    own = [{"instruction": "a hut", "prompt": "a wooden hut"}]
    told = composed(line(2), instruction="at night", history=own)
    assert ([turn.prompt for turn in told.request.history], told.history) == (["a wooden hut"], [])
    assert composed(line(2), instruction="at night", history=[]).request.history == ()


def test_an_explicit_task_gets_the_picture_that_it_needs() -> None:
    assert composed(line(1), task="similar", instruction="in blue").request.image == image(1).id
    assert composed(line(1), mask="img_mask").request.task is Task.INPAINT
    assert composed(line(1), outpaint={"left": 8}).request.image == image(1).id
    assert composed(line(1), task="similar").task_chosen_by == "client"


def test_a_turn_without_words_makes_a_picture_like_the_latest_one() -> None:
    again = composed(line(1))
    assert (again.request.task, again.request.image) == (Task.SIMILAR, image(1).id)


def test_a_picture_that_is_sent_goes_before_those_of_the_session() -> None:
    again = composed(line(1), image="img_sent", instruction="the first one in blue")
    assert (again.request.task, again.request.image, again.source) == (Task.SIMILAR, "img_sent", None)


EDITING = offers([Task.TEXT_TO_IMAGE, Task.SIMILAR, Task.EDIT])


def test_a_turn_looks_like_the_one_before_but_for_its_seed() -> None:
    tree = session(turn(1, made=(64, 128), negative_prompt="fog", num_inference_steps=9, seed=5))
    again = composed(tree, instruction="at night", num_inference_steps=3)
    assert (again.request.size, again.request.negative_prompt, again.request.seed) == ("64x128", "fog", None)
    assert (again.request.model, again.request.num_inference_steps) == ("painter", 3)
    assert composed(tree, instruction="at night", size="64x64").request.size == "64x64"


def test_an_edit_has_the_size_of_its_picture_and_its_own_steps() -> None:
    tree = session(turn(1, made=(64, 128), num_inference_steps=9))
    edit = composed(tree, able=EDITING, instruction="at night")
    assert (edit.request.task, edit.request.size, edit.request.num_inference_steps) == (Task.EDIT, "64x128", None)


@pytest.mark.parametrize("made", [(65, 64), (512, 64), (32, 64)])
def test_a_picture_of_a_size_that_is_not_rendered_leaves_it_to_the_model(made: tuple[int, int]) -> None:
    assert composed(session(turn(1, made=made)), able=EDITING, instruction="at night").request.size is None


@pytest.mark.parametrize(
    "fields", [{"model": "other"}, {"image": "img_sent"}, {"mask": "img_mask"}, {"instruction": "a boat", "parent": 0}]
)
def test_nothing_is_taken_over_where_it_would_not_fit(fields: dict[str, Any]) -> None:
    tree = session(turn(1, made=(64, 128), negative_prompt="fog"))
    again = composed(tree, **{"instruction": "at night", **fields})
    assert (again.request.size, again.request.negative_prompt) == (None, "")


def test_a_model_that_is_gone_is_not_taken_over() -> None:
    assert composed(session(turn(1, model="gone")), instruction="at night").request.model is None


def test_a_turn_is_rendered_once_more_with_its_prompt_and_what_is_said_anew() -> None:
    tree = session(turn(1), turn(2, 1, num_inference_steps=9, approve=True))
    again = composed(tree, rerender=2, seed=8, size="64x64")
    assert again.prompt is not None
    assert (again.prompt.text, again.prompt.prompt_tokens) == ("prompt 2", None)
    assert (again.request.seed, again.request.size, again.request.num_inference_steps) == (8, "64x64", 9)
    assert (again.request.instruction, again.request.approve) == ("turn 2", False)
    assert (again.parent, again.rerender_of) == (1, 2)


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"instruction": "a", "parent": 9}, ("parent", "not_found")),
        ({"rerender": 9}, ("rerender", "not_found")),
        ({"instruction": "a", "refers_to": {"turn": 9}}, ("refers_to", "not_found")),
        ({"instruction": "a", "refers_to": {"turn": 1, "index": 1}}, ("refers_to", "not_found")),
        ({"instruction": "a", "refers_to": {"turn": 1}, "image": "img_1"}, ("refers_to", "contradiction")),
        ({"rerender": 1, "instruction": "a"}, ("instruction", "contradiction")),
        ({"rerender": 1, "parent": 1}, ("parent", "contradiction")),
        ({"instruction": "a", "task": "inpaint"}, ("mask", "missing")),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(fields: dict[str, Any], problem: tuple[str, str]) -> None:
    assert problem in refused(line(1), **fields)


def test_a_turn_without_words_needs_a_picture() -> None:
    assert refused(line(0)) == {("instruction", "missing")}
    assert refused(session(turn(1, status=JobStatus.FAILED))) == {("instruction", "missing")}


def test_a_prompt_alone_is_not_rendered_once_more() -> None:
    assert refused(session(turn(1, task="prompt", images=0)), rerender=1) == {("rerender", "not_found")}


def test_a_turn_under_way_cannot_be_gone_on_from() -> None:
    tree = session(turn(1), turn(2, 1, status=JobStatus.RUNNING))
    with pytest.raises(TurnUnderWay):
        composed(tree, instruction="at night")
    assert composed(tree, instruction="at night", parent=1).parent == 1


def test_what_is_kept_of_a_turn_leaves_out_the_words_of_others() -> None:
    second = composed(line(1), instruction="at night")
    record = second.record(second.request)
    assert (record.request.history, record.history, record.parent) == ((), [1], 1)


@FEW
@given(
    trees(8),
    st.fixed_dictionaries(
        {},
        optional={
            "instruction": st.sampled_from(["", "make it blue", "the second one", "第三张"]),
            "parent": st.integers(0, 10),
            "refers_to": st.builds(PictureReference, turn=st.integers(1, 10), index=st.integers(0, 4)),
            "rerender": st.integers(1, 10),
            "image": st.just("img_sent"),
            "task": st.sampled_from(list(Task)),
            "prompt_mode": st.sampled_from(["refine", "verbatim"]),
            "seed": st.integers(0, 9),
        },
    ),
)
def test_any_turn_becomes_a_request_that_belongs_to_the_tree_or_is_refused(
    tree: Session, fields: dict[str, Any]
) -> None:
    wanted = TurnRequest.model_validate(fields)
    try:
        made = compose(wanted, tree, offers())
    except InvalidRequest:
        return
    numbers = {one.id for one in tree.turns}
    assert made.parent is None or made.parent in numbers
    assert set(made.history) <= numbers
    assert len(made.request.history) == len(made.history) or made.rerender_of
    assert (made.prompt is not None) == (wanted.rerender is not None)
    if made.source is not None:
        assert made.source.turn in numbers
    own = {one.id for turn in tree.turns for one in turn.images} | {one.request.image for one in tree.turns}
    assert made.request.image in own | {None, "img_sent"}
