import re

import pytest
from pydantic import ValidationError

from shared.contracts import TERMINAL, Event, EventType, events


def test_a_stream_ends_with_the_event_of_a_final_state() -> None:
    assert {kind.removeprefix("job.") for kind in EventType if kind.ends_stream} == set(TERMINAL)


def test_the_table_of_events_is_complete_and_in_order() -> None:
    documented = re.findall(r"^\| `([a-z_.]+)`", events.__doc__ or "", re.MULTILINE)
    assert documented == [*EventType]


def test_an_event_survives_the_wire() -> None:
    event = Event(id="1700000000000-0", type=EventType.PROMPT_DELTA, job_id="job_1", data={"text": "雪 \u2028\n"})
    assert Event.model_validate_json(event.model_dump_json()) == event


@pytest.mark.parametrize("change", [{"type": "job.paused"}, {"id": None}, {"data": "x"}, {"surplus": 1}])
def test_what_is_no_event_is_refused(change: dict[str, object]) -> None:
    event = Event(id="1-0", type=EventType.QUEUED, job_id="job_1")
    with pytest.raises(ValidationError):
        Event.model_validate(event.model_dump() | change)
