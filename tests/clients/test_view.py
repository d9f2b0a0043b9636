import io
from typing import Any

import pytest
from rich.console import Console

from clients.view import LiveView, PlainView, Story, View
from shared.contracts import Event, EventType

PROMPT = {"text": "a snowman at night, falling snow", "source": "mllm"}


def event(type: EventType, **data: Any) -> Event:
    return Event(id="1-0", type=type, job_id="job_1", data=data)


STORY = [
    event(EventType.QUEUED, stage="prompt"),
    event(EventType.STARTED, stage="prompt", attempt=1, worker="w"),
    event(EventType.PROMPT_DELTA, text="a snow"),
    event(EventType.PROMPT_DELTA, text="man"),
    event(EventType.PROMPT_COMPLETED, prompt=PROMPT),
    event(EventType.QUEUED, stage="render"),
    event(EventType.STARTED, stage="render", attempt=1, worker="w"),
    *[event(EventType.RENDER_PROGRESS, index=0, step=step, total_steps=8) for step in range(1, 9)],
    event(EventType.SUCCEEDED, images=[]),
]


def tell(view: View, events: list[Event], pictures: int = 1) -> Story:
    story = Story(pictures=pictures)
    with view:
        for each in events:
            story.take(each)
            view.update(story, each)
    return story


def test_the_prompt_grows_with_its_deltas() -> None:
    story = Story()
    for each in STORY[:4]:
        story.take(each)
    assert story.prompt == "a snowman"
    assert story.phase == "writing the prompt"


def test_a_second_start_forgets_what_the_lost_worker_wrote() -> None:
    story = Story()
    for each in [*STORY[:4], event(EventType.STARTED, stage="prompt", attempt=2, worker="v")]:
        story.take(each)
    assert story.prompt == ""
    assert "again" in story.phase


def test_the_steps_of_all_pictures_add_up() -> None:
    story = Story(pictures=2)
    for index, step in ((0, 3), (1, 2), (0, 4)):
        story.take(event(EventType.RENDER_PROGRESS, index=index, step=step, total_steps=8))
    assert (story.step, story.total_steps) == (6, 16)


def test_a_pipe_gets_one_plain_line_for_each_thing_that_happened() -> None:
    stream = io.StringIO()
    tell(PlainView(stream), STORY)
    lines = [line.partition("] ")[2] for line in stream.getvalue().splitlines()]
    assert lines == [
        "waiting for the language model",
        "writing the prompt",
        "prompt: a snowman at night, falling snow",
        "waiting for the diffusion service",
        "rendering",
        "step 2 of 8",
        "step 4 of 8",
        "step 6 of 8",
        "step 8 of 8",
        "succeeded",
    ]
    assert "\x1b" not in stream.getvalue()


@pytest.mark.parametrize("told", [4, 10])
def test_a_terminal_shows_the_prompt_and_the_bar(told: int) -> None:
    stream = io.StringIO()
    tell(LiveView(Console(file=stream, force_terminal=True, width=100)), STORY[:told])
    assert "snowman" in stream.getvalue()
    assert ("3/8" in stream.getvalue()) is (told == 10)


def test_markup_in_a_prompt_is_shown_as_it_is() -> None:
    stream = io.StringIO()
    events = [STORY[1], event(EventType.PROMPT_DELTA, text="[red]a fox[/red] [/oops]")]
    tell(LiveView(Console(file=stream, force_terminal=True, width=100)), events)
    assert "[red]a fox[/red] [/oops]" in stream.getvalue()
