"""How long a refusal asks its client to wait."""

import pytest

from shared.jobs.refusals import queue_full


@pytest.mark.parametrize(
    ("max_queued", "drain_rate", "seconds"),
    [
        (800, 20.0, 4),
        (800, 19.8, 4),  # 4.04 s: not five
        (800, 17.0, 5),  # 4.7 s
        (800, 400.0, 1),
        (5, 2.0, 1),  # at least one job has to end
        (10_000, 0.5, 300),
        (800, 0.0, 30),  # nothing has ended yet
    ],
)
def test_a_full_queue_asks_for_the_time_until_a_tenth_of_it_is_free(
    max_queued: int, drain_rate: float, seconds: int
) -> None:
    assert queue_full(max_queued, drain_rate).retry_after_s == seconds
