"""vLLM is kept full, with a few requests ahead, and is given no more when it cannot start what it has."""

import pytest

from services.mllm.flow import Flow, Load


def room(*, unfinished: int, running: int, waiting: int, max_running: int = 32) -> int:
    return Flow(max_running, lambda: Load(unfinished, running, waiting)).room()


def test_an_idle_engine_takes_what_it_can_run_and_a_few_ahead() -> None:
    assert room(unfinished=0, running=0, waiting=0) == 36
    assert Flow(32, lambda: Load(0, 0, 0)).capacity == 64  # with those that vLLM is done with
    assert room(unfinished=0, running=0, waiting=0, max_running=1) == 2


def test_a_full_engine_has_a_few_ahead_and_takes_no_more() -> None:
    assert room(unfinished=32, running=32, waiting=0) == 4
    assert room(unfinished=34, running=32, waiting=2) == 2
    assert room(unfinished=36, running=32, waiting=4) == 0


def test_an_engine_whose_memory_is_full_is_not_drowned() -> None:
    # Ten conversations fill the cache, so that places for 22 more mean nothing.
    assert room(unfinished=12, running=10, waiting=2) == 2
    assert room(unfinished=14, running=10, waiting=4) == 0
    assert room(unfinished=40, running=10, waiting=30) == 0


def test_a_place_that_became_free_is_offered_at_once() -> None:
    assert room(unfinished=31, running=32, waiting=0) == 5


def test_requests_that_the_engine_has_not_seen_yet_count() -> None:
    assert room(unfinished=20, running=0, waiting=0) == 16


def test_gauges_of_an_engine_that_has_become_idle_are_not_believed() -> None:
    # Its latest step was before the last requests were aborted.
    assert room(unfinished=0, running=5, waiting=7) == 36
    assert room(unfinished=1, running=5, waiting=7) == 4


@pytest.mark.parametrize("max_running", [1, 2, 7, 8, 32, 1_024])
def test_there_is_never_room_beyond_the_capacity_nor_none_in_an_idle_engine(max_running: int) -> None:
    flow = Flow(max_running, lambda: Load(0, 0, 0))
    assert max_running < flow.room() <= flow.capacity == max_running * 2
