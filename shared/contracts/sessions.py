"""Sessions: conversations about pictures, as trees of turns.

A turn is a job with a place in its session's tree. What a client says is a `TurnRequest`; what is kept of it is a
`TurnRecord`, complete like a job's request; what became of it is a `TurnState`, which outlives the job.
"""

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, Strict

from shared.contracts.generation import GenerationFields, GenerationRequest, Task, meaningful_or_empty
from shared.contracts.jobs import GenerationPrompt, ImageResult, JobStatus
from shared.contracts.problem import Problem

MAX_NAME_CHARS = 200
MAX_TURNS = 1_000  # of any session, whatever the settings say
ROOT = 0  # the parent of turns that begin anew

TurnNumber = Annotated[int, Strict(), Field(ge=1, le=MAX_TURNS)]


class SessionRequest(BaseModel):
    """What a session may be given when it is made."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, Field(max_length=MAX_NAME_CHARS), AfterValidator(meaningful_or_empty)] = Field(
        default="", description="For people, to find it again.", examples=["the house by the sea"]
    )


class PictureReference(BaseModel):
    """A picture of a session."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    turn: TurnNumber = Field(description="The turn that made it.")
    index: Annotated[int, Strict()] = Field(default=0, ge=0, le=7, description="Which of its pictures, from 0.")


class TurnRequest(GenerationFields):
    """What a client says in a session: fields of a request, and where in the tree they belong.

    What is left open comes from the turns before: the picture, the task, the words, the model and its size.
    """

    task: Task | None = Field(  # type: ignore[assignment]  # wider than the field's of a request: it may stay open
        default=None, description="Chosen by what the turn says and shows, if left out."
    )
    parent: Annotated[int, Strict()] | None = Field(
        default=None,
        ge=ROOT,
        le=MAX_TURNS,
        description="The turn that this one goes on from, 0 to begin anew; the latest one if left out.",
    )
    refers_to: PictureReference | None = Field(
        default=None,
        description="The picture that this turn is about, anywhere in the session. Without it, the words decide "
        '("the second one", "第二张"), and otherwise the latest picture on the way to the turn is meant.',
    )
    rerender: TurnNumber | None = Field(
        default=None,
        description="Render this turn's prompt once more, with the fields that are given here in place of its own.",
    )


class PictureSource(PictureReference):
    """The picture of the session that a turn is about, and how it was found."""

    chosen_by: Literal["client", "words", "latest"]


class TurnRecord(BaseModel):
    """What is kept of a turn when it is accepted."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    parent: int | None = Field(default=None, description="The turn that it goes on from; absent where it begins anew.")
    rerender_of: int | None = Field(default=None, description="The turn whose prompt it renders once more.")
    source: PictureSource | None = Field(
        default=None, description="The picture of this session that it is about; absent if the client sent one."
    )
    task_chosen_by: Literal["client", "session"]
    history: list[int] = Field(default_factory=list, description="The turns that the language model was told of.")
    request: GenerationRequest = Field(
        description="The job's request with every value filled in, but for the `history` made of those turns."
    )


class TurnState(BaseModel):
    """What has become of a turn so far."""

    model_config = ConfigDict(extra="forbid")

    status: JobStatus
    prompt: GenerationPrompt | None = None
    images: list[ImageResult] = Field(default_factory=list)
    error: Problem | None = None


class Turn(TurnState, TurnRecord):
    """A turn as clients see it."""

    model_config = ConfigDict(extra="forbid", frozen=False)

    id: int = Field(description="Its number in the session, from 1, in the order of submission.")
    job_id: str = Field(description="The job that it became, to be followed while it is kept.")
    created_at: float = Field(description="Unix time in seconds, by the queue's clock.")


class SessionSummary(BaseModel):
    """A session without its turns."""

    model_config = ConfigDict(extra="forbid")

    id: str
    object: Literal["session"] = "session"
    name: str = ""
    created_at: float = Field(description="Unix time in seconds, by the queue's clock.")
    updated_at: float = Field(description="When its latest turn was submitted.")
    expires_at: float = Field(description="When it goes away unless another turn is submitted.")
    turn_count: int


class Session(SessionSummary):
    """A session with its tree of turns."""

    turns: list[Turn] = Field(description="In the order of submission; `parent` makes them a tree.")


class SessionList(BaseModel):
    """A page of a tenant's sessions, the latest made first."""

    model_config = ConfigDict(extra="forbid")

    object: Literal["list"] = "list"
    data: list[SessionSummary] = Field(description="May be fewer than were asked for, although there are more.")
    next: str | None = Field(default=None, description="What to send as `after` for the next page; absent on the last.")
