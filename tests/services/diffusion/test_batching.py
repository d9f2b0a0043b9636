"""Who takes part in the next call: order, fullness and the bound on waiting."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from services.diffusion.batching import PATIENCE_CALLS, BatchKey, Buckets, choose

MAX_ROWS = 16


def key(side: int) -> BatchKey:
    return BatchKey("mini", 4, side, side, 77, "torch.float32", False)


@dataclass(eq=False)
class Request:
    key: BatchKey
    rows: int = 2
    is_interactive: bool = True
    waiting_since: int = 0
    has_begun: bool = False


def always_full(key: BatchKey, rows: int) -> int:
    return MAX_ROWS


def run(requests: list[Request], calls: int, room: Callable[[BatchKey, int], int] = always_full) -> list[list[Request]]:
    """Return who took part in each call; nobody ever leaves."""
    taken = []
    for call in range(1, calls + 1):
        chosen = choose(requests, call, room)
        for request in chosen:
            request.waiting_since, request.has_begun = call, True
        taken.append(chosen)
    return taken


def longest_wait(calls: list[list[Request]], request: Request) -> int:
    """Return the most calls between two that the request took part in."""
    present = [number for number, chosen in enumerate(calls) if request in chosen]
    edges = [-1, *present, len(calls)]
    return max(after - before for before, after in pairwise(edges))


@given(st.lists(st.tuples(st.sampled_from([8, 16, 32, 64]), st.sampled_from([1, 2])), min_size=1, max_size=60))
def test_nobody_waits_longer_than_one_round(wants: list[tuple[int, int]]) -> None:
    requests = [Request(key(side), rows) for side, rows in wants]
    sides = {side for side, _ in wants}
    # A call may leave one row free when the next request wants two.
    calls_per_round = sum(math.ceil(sum(rows for side, rows in wants if side == one) / (MAX_ROWS - 1)) for one in sides)
    calls = run(requests, 3 * calls_per_round)
    for chosen in calls:
        assert chosen
        assert len({request.key for request in chosen}) == 1
        assert sum(request.rows for request in chosen) <= MAX_ROWS
    assert all(longest_wait(calls, request) <= calls_per_round + 1 for request in requests)


def test_a_call_is_filled_with_the_key_of_whoever_waited_longest() -> None:
    old = Request(key(16), waiting_since=1)
    others = [Request(key(16), waiting_since=5) for _ in range(9)]
    rivals = [Request(key(32), waiting_since=2) for _ in range(9)]
    chosen = choose([*rivals, *others, old], 6, always_full)
    assert chosen[0] is old
    assert len(chosen) == 8
    assert set(chosen) <= {old, *others}


def test_newcomers_go_before_those_who_have_begun_but_behind_whoever_waited_longest() -> None:
    old, *others = [Request(key(16), waiting_since=since, has_begun=True) for since in range(1, 10)]
    newcomer = Request(key(16), waiting_since=9)
    assert choose([*others, old, newcomer], 10, lambda _, rows: 4) == [old, newcomer]
    batch = Request(key(16), waiting_since=9, is_interactive=False)
    assert choose([*others, old, batch], 10, lambda _, rows: 4) == [old, others[0]]


def test_the_room_of_a_call_is_asked_for_by_the_rows_of_its_key() -> None:
    asked: list[tuple[BatchKey, int]] = []

    def room(wanted: BatchKey, rows: int) -> int:
        asked.append((wanted, rows))
        return rows

    crowd = [Request(key(16), rows=rows) for rows in (1, 2, 2)]
    assert choose([*crowd, Request(key(32), waiting_since=1)], 2, room) == crowd
    assert asked == [(key(16), 5)]


def test_a_rare_size_is_served_every_second_call_beside_a_common_one() -> None:
    rare = Request(key(64))
    calls = run([*(Request(key(16), rows=1) for _ in range(10)), rare], 40)
    assert longest_wait(calls, rare) == 2


def test_interactive_goes_before_batch_at_the_next_call() -> None:
    crowd = [Request(key(16), is_interactive=False) for _ in range(20)]
    run(crowd, 5)
    urgent = Request(key(32), waiting_since=5)
    assert choose([*crowd, urgent], 6, always_full) == [urgent]


def test_batch_rides_along_in_free_rows_of_its_own_key() -> None:
    urgent = [Request(key(16)) for _ in range(3)]
    crowd = [Request(key(16), is_interactive=False) for _ in range(20)]
    chosen = choose([*crowd, *urgent], 1, always_full)
    assert chosen[:3] == urgent
    assert len(chosen) == 8


def test_batch_progresses_under_endless_interactive_work() -> None:
    batch = Request(key(32), is_interactive=False)
    calls = run([*(Request(key(16)) for _ in range(30)), batch], 100)
    assert longest_wait(calls, batch) <= PATIENCE_CALLS + 1
    assert sum(batch in chosen for chosen in calls) >= 100 // (PATIENCE_CALLS + 2)


def test_buckets_double_from_two_to_the_bound() -> None:
    assert Buckets.up_to(16).sizes == (2, 4, 8, 16)
    assert Buckets.up_to(31).sizes == (2, 4, 8, 16)
    assert Buckets.up_to(2).sizes == (2,)
    assert Buckets.up_to(16).is_stable
    partly = Buckets([4, 8, 16], stable=[8, 16])
    assert not partly.is_stable
    assert partly.of(key(16)) == (4, 8, 16)
    assert partly.of(key(16)._replace(fixed_bucket=True)) == (8, 16)


def test_a_call_has_room_for_all_that_wait_or_as_many_as_there_can_be() -> None:
    buckets = Buckets([4, 8, 16])
    assert [buckets.room(rows, buckets.sizes) for rows in (1, 4, 5, 8, 9, 16, 40)] == [4, 4, 8, 8, 16, 16, 16]
    assert buckets.room(12, (4, 8)) == 8


def test_a_call_leaves_some_out_where_more_get_done_in_its_time() -> None:
    buckets = Buckets([4, 8, 16], call_s={4: 4.0, 8: 5.0, 16: 9.0})
    # Of 9 rows a call makes one per second in the largest bucket, and 1.6 in the one below.
    assert [buckets.room(rows, buckets.sizes) for rows in (4, 5, 6, 8, 9, 13, 14, 16)] == [4, 8, 8, 8, 8, 8, 16, 16]
    flat = Buckets([4, 8, 16], call_s=dict.fromkeys((4, 8, 16), 1.0))
    assert [flat.room(rows, flat.sizes) for rows in (3, 5, 9)] == [4, 8, 16]
    assert buckets.room(9, (16,)) == 16


@given(st.lists(st.sampled_from([1, 2]), min_size=1, max_size=40))
def test_leaving_some_out_gets_no_less_done_and_makes_nobody_wait_for_long(rows: list[int]) -> None:
    call_s = {2: 3.0, 4: 4.0, 8: 5.0, 16: 9.0}

    def rows_per_s(buckets: Buckets) -> float:
        requests = [Request(key(16), one) for one in rows]
        seconds = 0.0

        def room(_: BatchKey, waiting: int) -> int:
            nonlocal seconds
            size = buckets.room(waiting, buckets.sizes)
            seconds += call_s[size]
            return size

        calls = run(requests, 60, room)
        # No less than half of what fits a call is taken; one that is left out is the first of the next.
        assert all(longest_wait(calls, request) <= math.ceil(sum(rows) / 8) + 1 for request in requests)
        return sum(request.rows for chosen in calls for request in chosen) / seconds

    sizes = tuple(call_s)
    assert rows_per_s(Buckets(sizes, call_s=call_s)) >= 0.95 * rows_per_s(Buckets(sizes))  # 7 of 8 rows may be taken
