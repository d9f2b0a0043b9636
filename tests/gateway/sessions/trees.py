"""Sessions as data, for the pure parts."""

from collections.abc import Sequence
from typing import Any

from gateway.offers import Offers
from shared.contracts import (
    Announcement,
    GenerationPrompt,
    GenerationRequest,
    ImageResult,
    JobStatus,
    Phase,
    Stage,
    Task,
)
from shared.contracts.sessions import Session, Turn
from tests.gateway.workers import PROMPT_MODEL, RENDER_MODEL


def image(turn: int, index: int = 0, width: int = 64, height: int = 64) -> ImageResult:
    """Return a picture of a turn."""
    return ImageResult(
        index=index,
        id=f"img_{turn:030d}{index:010d}",
        url="/v1/images/x",
        media_type="image/png",
        width=width,
        height=height,
        bytes=1,
        sha256="0" * 64,
        seed=index,
    )


def turn(number: int, parent: int | None = None, *, images: int = 1, **fields: Any) -> Turn:
    """Return a turn that has succeeded; `fields` are those of its request, or of the turn itself."""
    size = fields.pop("made", (64, 64))
    status = fields.pop("status", JobStatus.SUCCEEDED)
    made = [image(number, index, *size) for index in range(images if status is JobStatus.SUCCEEDED else 0)]
    prompt = fields.pop("prompt", f"prompt {number}")
    request: dict[str, Any] = {"instruction": f"turn {number}", "model": "painter", "size": "128x128", "seed": number}
    return Turn(
        id=number,
        parent=parent,
        job_id=f"job_{number}",
        created_at=0,
        task_chosen_by="session",
        request=GenerationRequest.model_validate(request | fields),
        status=status,
        prompt=None if prompt is None else GenerationPrompt(text=prompt, source="mllm", prompt_tokens=5),
        images=made,
    )


def session(*turns: Turn) -> Session:
    """Return a session with these turns."""
    return Session(id="ses_1", created_at=0, updated_at=0, expires_at=1, turn_count=len(turns), turns=list(turns))


def line(count: int) -> Session:
    """Return a session without branches."""
    return session(*(turn(number, number - 1 or None) for number in range(1, count + 1)))


WITHOUT_EDITS = tuple(task for task in RENDER_MODEL.tasks if task is not Task.EDIT)


def offers(tasks: Sequence[Task] = WITHOUT_EDITS, prompt_tasks: Sequence[Task] = tuple(Task)) -> Offers:
    """Return what one worker per stage offers, whose models do these tasks."""
    models = {
        Stage.PROMPT: PROMPT_MODEL.model_copy(update={"tasks": list(prompt_tasks)}),
        Stage.RENDER: RENDER_MODEL.model_copy(update={"tasks": list(tasks)}),
    }
    return Offers.of(
        Announcement(worker=stage, stage=stage, phase=Phase.READY, models=[model]) for stage, model in models.items()
    )
