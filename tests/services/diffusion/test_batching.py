"""Who takes part in the next call: order, fullness and the bound on waiting."""

import math
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


def run(requests: list[Request], calls: int) -> list[list[Request]]:
    """Return who took part in each call; nobody ever leaves."""
    taken = []
    for call in range(1, calls + 1):
        chosen = choose(requests, call, lambda _: MAX_ROWS)
        for request in chosen:
            request.waiting_since = call
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
    chosen = choose([*rivals, *others, old], 6, lambda _: MAX_ROWS)
    assert chosen[0] is old
    assert len(chosen) == 8
    assert set(chosen) <= {old, *others}


def test_a_rare_size_is_served_every_second_call_beside_a_common_one() -> None:
    rare = Request(key(64))
    calls = run([*(Request(key(16), rows=1) for _ in range(10)), rare], 40)
    assert longest_wait(calls, rare) == 2


def test_interactive_goes_before_batch_at_the_next_call() -> None:
    crowd = [Request(key(16), is_interactive=False) for _ in range(20)]
    run(crowd, 5)
    urgent = Request(key(32), waiting_since=5)
    assert choose([*crowd, urgent], 6, lambda _: MAX_ROWS) == [urgent]


def test_batch_rides_along_in_free_rows_of_its_own_key() -> None:
    urgent = [Request(key(16)) for _ in range(3)]
    crowd = [Request(key(16), is_interactive=False) for _ in range(20)]
    chosen = choose([*crowd, *urgent], 1, lambda _: MAX_ROWS)
    assert chosen[:3] == urgent
    assert len(chosen) == 8


def test_batch_progresses_under_endless_interactive_work() -> None:
    batch = Request(key(32), is_interactive=False)
    calls = run([*(Request(key(16)) for _ in range(30)), batch], 100)
    assert longest_wait(calls, batch) <= PATIENCE_CALLS + 1
    assert sum(batch in chosen for chosen in calls) >= 100 // (PATIENCE_CALLS + 2)


def test_buckets_double_from_four_to_the_bound() -> None:
    assert Buckets.up_to(16).sizes == (4, 8, 16)
    assert Buckets.up_to(31).sizes == (4, 8, 16)
    assert Buckets.up_to(4).sizes == (4,)
    assert Buckets.up_to(16).is_stable
    partly = Buckets([4, 8, 16], stable=[8, 16])
    assert not partly.is_stable
    assert partly.of(key(16)) == (4, 8, 16)
    assert partly.of(key(16)._replace(fixed_bucket=True)) == (8, 16)
