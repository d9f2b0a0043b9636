"""The job record: one per request, complete enough to make the picture again without the language model."""

from enum import StrEnum
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from shared.contracts.generation import GenerationRequest
from shared.contracts.problem import Problem


class JobStatus(StrEnum):
    """Where a job is in its life; the last three are final."""

    QUEUED = "queued"
    RUNNING = "running"
    AWAITING_APPROVAL = "awaiting_approval"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELED = "canceled"


TERMINAL = frozenset({JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELED})


class Stage(StrEnum):
    """The service that the job is with, or waits for."""

    PROMPT = "prompt"
    RENDER = "render"


class GenerationPrompt(BaseModel):
    """The prompt that the diffusion model gets, and where it came from."""

    model_config = ConfigDict(extra="forbid")

    text: str
    source: Literal["mllm", "verbatim", "edited"]
    source_caption: str | None = Field(default=None, description="Of an `edit`: the caption of the image as it is.")
    model: str | None = Field(default=None, description="The language model that wrote it.")
    finish_reason: str | None = Field(default=None, description="Why the language model stopped: `stop` or `length`.")
    completion_tokens: int | None = Field(default=None, description="Tokens that the language model generated.")
    fallback: str | None = Field(
        default=None,
        description="Set when the answer held no `<gen_image>` pair: which rule made the prompt from it.",
    )
    more: list[str] | None = Field(
        default=None, description="The answer's further prompts, in order, where several pictures were asked for."
    )
    dropped_turns: int | None = Field(
        default=None, description="How many turns of the conversation, oldest first, did not fit the language model."
    )
    prompt_tokens: int | None = Field(
        default=None, description="Tokens of the text encoder's tokenizer, when rendered."
    )
    truncated_tokens: int | None = Field(default=None, description="How many of those did not fit the text encoder.")


class ArtifactName(StrEnum):
    """Pictures on the way to a finished one."""

    INPUT = "input"
    MASK = "mask"
    MASKED_INPUT = "masked_input"
    UNRESTORED = "unrestored"


class ImageArtifact(BaseModel):
    """A picture on the way to a finished one, kept beside it."""

    model_config = ConfigDict(extra="forbid")

    name: ArtifactName = Field(
        description="`mask`: white where the picture could change. `input`, `masked_input`: what it was made from. "
        "`unrestored`: with what was painted put in as it was rendered."
    )
    id: str
    url: str = Field(description="Path on this server.")
    media_type: str
    width: int
    height: int


class ImageResult(BaseModel):
    """One finished picture."""

    model_config = ConfigDict(extra="forbid")

    index: int = Field(ge=0)
    id: str
    url: str = Field(description="Path on this server.")
    media_type: str
    width: int
    height: int
    bytes: int
    sha256: str
    seed: int
    artifacts: list[ImageArtifact] = Field(
        default_factory=list, description="Of an `edit` its mask; with `debug` of all tasks what there is on the way."
    )


class Progress(BaseModel):
    """Steps done over all pictures of the job."""

    model_config = ConfigDict(extra="forbid")

    step: int
    total_steps: int


class QueuePosition(BaseModel):
    """Place in the queue of the job's stage, at the time of the answer."""

    model_config = ConfigDict(extra="forbid")

    position: int = Field(ge=0, description="Jobs of the same stage that were queued earlier.")


class Timings(BaseModel):
    """Seconds spent per stage, by the queue's clock; absent until the stage has ended."""

    model_config = ConfigDict(extra="forbid")

    prompt_queued_s: float | None = None
    prompt_s: float | None = None
    render_queued_s: float | None = None
    render_s: float | None = None
    total_s: float | None = None


class Job(BaseModel):
    """A job as clients see it."""

    model_config = ConfigDict(extra="forbid")

    id: str
    object: Literal["job"] = "job"
    status: JobStatus
    stage: Stage
    attempts: int = Field(description="Times that the present stage was started.")
    created_at: float = Field(description="Unix time in seconds, by the queue's clock.")
    updated_at: float
    session_id: str | None = Field(default=None, description="The session that it is a turn of.")
    turn: int | None = Field(default=None, description="Its number among the turns of that session.")
    request: GenerationRequest = Field(description="The request with every value filled in that was left open.")
    prompt: GenerationPrompt | None = None
    images: list[ImageResult] = Field(default_factory=list)
    progress: Progress | None = None
    queue: QueuePosition | None = None
    eta_s: float | None = Field(
        default=None,
        description="While it waits for a worker or has one: estimated seconds until it has ended or is held for "
        "approval. Absent until jobs like it have ended.",
    )
    timings: Timings = Field(default_factory=Timings)
    error: Problem | None = None
    links: dict[str, str] = Field(default_factory=dict)


class JobList(BaseModel):
    """A page of a tenant's jobs, the latest submission first."""

    model_config = ConfigDict(extra="forbid")

    object: Literal["list"] = "list"
    data: list[Job] = Field(description="May be fewer than were asked for, or none, although there are more.")
    next: str | None = Field(default=None, description="What to send as `after` for the next page; absent on the last.")
