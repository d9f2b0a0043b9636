"""What a person sees of a job: the prompt as it is written, the steps, the time, or plain lines in a pipe.

`Story` is what the events have told so far; the two views only draw it.
"""

import time
from dataclasses import dataclass, field
from types import TracebackType
from typing import Protocol, Self, TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from shared.contracts import Event, EventType, GenerationPrompt, Stage

_BAR_WIDTH = 40
_LINES_OF_STEPS = 4  # in a pipe, where a line for every step would be too much


@dataclass
class Story:
    """The job so far, as told by its events."""

    pictures: int = 1
    phase: str = "sending"
    prompt: str = ""
    steps: dict[int, int] = field(default_factory=dict)  # done, by picture
    total_steps: int = 0  # over all pictures
    started_at: float = field(default_factory=time.monotonic)

    def take(self, event: Event) -> None:
        """Take in the next event."""
        match event.type:
            case EventType.QUEUED:
                self.phase = f"waiting for the {_service(event)}"
            case EventType.STARTED:
                self._start(event)
            case EventType.PROMPT_DELTA:
                self.prompt += str(event.data.get("text", ""))
            case EventType.PROMPT_COMPLETED:
                self.prompt = GenerationPrompt.model_validate(event.data["prompt"]).text
            case EventType.AWAITING_APPROVAL:
                self.phase = "waiting for your approval"
            case EventType.RENDER_PROGRESS:
                self.steps[int(event.data["index"])] = int(event.data["step"])
                self.total_steps = int(event.data["total_steps"]) * self.pictures
            case EventType.SUCCEEDED | EventType.FAILED | EventType.CANCELED:
                self.phase = event.type.value.removeprefix("job.")

    def _start(self, event: Event) -> None:
        again = int(event.data.get("attempt", 1)) > 1
        if event.data.get("stage") == Stage.PROMPT.value:
            self.phase = "writing the prompt"
            self.prompt = ""  # what a lost attempt had written is not part of the prompt
        else:
            self.phase = "rendering"
            self.steps.clear()
        if again:
            self.phase += " again (a worker was lost)"

    @property
    def step(self) -> int:
        """Steps done over all pictures."""
        return sum(self.steps.values())

    @property
    def elapsed_s(self) -> float:
        """Seconds since the request was sent."""
        return time.monotonic() - self.started_at


def _service(event: Event) -> str:
    return "language model" if event.data.get("stage") == Stage.PROMPT.value else "diffusion service"


class View(Protocol):
    """Draws the story while it goes on."""

    def __enter__(self) -> Self:
        """Begin to draw."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the last picture standing."""

    def update(self, story: Story, event: Event) -> None:
        """Draw the story after an event."""


class PlainView:
    """A line for each thing that happened."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._phase = ""
        self._mark = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.flush()

    def update(self, story: Story, event: Event) -> None:
        """Write a line if this event is worth one."""
        if story.phase != self._phase:
            self._phase, self._mark = story.phase, 0
            self._line(story, story.phase)
        if event.type is EventType.PROMPT_COMPLETED:
            self._line(story, f"prompt: {story.prompt}")
        if event.type is EventType.RENDER_PROGRESS and story.total_steps:
            mark = _LINES_OF_STEPS * story.step // story.total_steps
            if mark > self._mark:
                self._mark = mark
                self._line(story, f"step {story.step} of {story.total_steps}{_pictures(story)}")

    def _line(self, story: Story, text: str) -> None:
        self._stream.write(f"[{story.elapsed_s:5.1f} s] {text}\n")
        self._stream.flush()


class LiveView:
    """The prompt as it grows, a bar of steps, and the time."""

    def __init__(self, console: Console) -> None:
        self._story = Story()
        self._live = Live(console=console, get_renderable=self._draw, refresh_per_second=8)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def update(self, story: Story, event: Event) -> None:
        """Take the story for the next refresh."""
        self._story = story

    def _draw(self) -> RenderableType:
        story = self._story
        line = Table.grid(padding=(0, 1))
        cells: list[RenderableType] = [Text(f"{story.elapsed_s:5.1f} s", style="dim"), Text(story.phase, style="bold")]
        if story.total_steps and story.phase.startswith("rendering"):
            bar = ProgressBar(total=story.total_steps, completed=story.step, width=_BAR_WIDTH)
            cells += [bar, Text(f"{story.step}/{story.total_steps}{_pictures(story)}")]
        line.add_row(*cells)
        if not story.prompt:
            return line
        return Group(Text(story.prompt, style="italic"), line)


def _pictures(story: Story) -> str:
    return f" ({story.pictures} pictures)" if story.pictures > 1 else ""


def open_view(stream: TextIO) -> View:
    """Return the view that fits the stream."""
    console = Console(file=stream, highlight=False)
    return LiveView(console) if console.is_terminal else PlainView(stream)
