from hypothesis import given
from hypothesis import strategies as st

from training.runs.order import drawn, seed_of, shuffled


@given(length=st.integers(1, 300), key=st.integers(0, 2**62))
def test_shuffled_is_a_permutation(length: int, key: int) -> None:
    assert sorted(shuffled(index, length, key) for index in range(length)) == list(range(length))


def test_orders_of_two_keys_differ_and_neither_is_the_sorted_one() -> None:
    orders = [tuple(shuffled(index, 1_000, key) for index in range(1_000)) for key in (1, 2)]
    assert len({*orders, tuple(range(1_000))}) == 3
    fixed = [sum(index == place for index, place in enumerate(order)) for order in orders]
    assert max(fixed) < 12  # one is expected


def test_set_without_end_is_drawn_from_without_memory() -> None:
    positions = {shuffled(index, 2**40, 7) for index in range(1_000)}
    assert len(positions) == 1_000
    assert max(positions) > 2**39


def test_every_example_comes_once_per_pass_in_another_order_each_pass() -> None:
    length, global_batch = 12, 4
    places = [
        drawn(3, step, place, global_batch=global_batch, length=length) for step in range(6) for place in range(4)
    ]
    first, second = places[:12], places[12:]
    assert sorted(position for position, _ in first) == list(range(12))
    assert sorted(position for position, _ in second) == list(range(12))
    assert [position for position, _ in first] != [position for position, _ in second]
    assert len({seed for _, seed in places}) == len(places)


def test_seed_depends_on_every_part_and_their_order() -> None:
    seeds = [seed_of(1, 2), seed_of(2, 1), seed_of(1, 2, "a"), seed_of(1, 2, "b"), seed_of(1)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)
