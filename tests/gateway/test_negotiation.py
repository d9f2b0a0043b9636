"""What headers mean."""

import pytest

from gateway.negotiation import DEFAULT_WAIT_S, best_media_type, event_id, idempotency_key, preferred_wait_s
from shared.errors import InvalidRequest

JSON, SSE = "application/json", "text/event-stream"


@pytest.mark.parametrize(
    ("accept", "best"),
    [
        (None, JSON),
        ("", JSON),
        ("*/*", JSON),
        ("text/html", JSON),
        ("nonsense", JSON),
        (";;,,", JSON),
        (SSE, SSE),
        ("TEXT/EVENT-STREAM", SSE),
        ("text/*", SSE),
        (f"{SSE};q=0.5, {JSON};q=0.9", JSON),
        (f"{SSE};q=0.9, {JSON};q=0.5", SSE),
        (f"{SSE};q=0.9, */*;q=0.5", SSE),
        (f"{SSE}, */*", SSE),
        (f"{SSE};q=0", JSON),
        (f"{SSE};q=much", JSON),
        (f"*/*, {JSON};q=0", SSE),
        (f"text/html, {SSE}; charset=utf-8", SSE),
    ],
)
def test_media_type_with_the_highest_quality_wins(accept: str | None, best: str) -> None:
    assert best_media_type(accept, (JSON, SSE)) == best


@pytest.mark.parametrize(
    ("prefer", "wait_s"),
    [
        ([], None),
        (["respond-async"], None),
        (["wait=10"], 10),
        (["WAIT = 10"], 10),
        (['wait="10"'], 10),
        (["wait=0.5"], 0.5),
        (["wait=0"], 0),
        (["wait"], DEFAULT_WAIT_S),
        (["respond-async, wait=10"], 10),
        (["respond-async", "wait=10"], 10),
        (["wait=10; foo=bar"], 10),
        (["wait=1000"], 300),
        (["wait=999999999"], 300),
        (["wait=-1"], None),
        (["wait=NaN"], None),
        (["wait=inf"], None),
        (["wait=1e3"], None),
        (["waiting=3"], None),
    ],
)
def test_wait_preference_is_read_and_bounded(prefer: list[str], wait_s: float | None) -> None:
    assert preferred_wait_s(prefer, 300) == wait_s


def test_header_of_the_last_event_wins_over_the_query() -> None:
    assert event_id("2-0", "1-0") == "2-0"
    assert event_id(None, "1-0") == "1-0"
    assert event_id("", "") == "0-0"


def test_key_is_optional() -> None:
    assert idempotency_key(None) is None
    assert idempotency_key("k" * 255) == "k" * 255
    with pytest.raises(InvalidRequest):
        idempotency_key("k\n")
