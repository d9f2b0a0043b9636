"""The events of a job, in the order in which they can happen.

| type | data |
|---|---|
| `job.queued` | `stage` |
| `job.started` | `stage`, `attempt`, `worker`; a second one per stage: a worker was lost, forget its deltas |
| `prompt.delta` | `text`: the next characters of the generation prompt, nothing else |
| `prompt.completed` | `prompt`: a `GenerationPrompt` |
| `job.awaiting_approval` | – |
| `render.progress` | `index`, `step`, `total_steps`, over one picture |
| `render.preview` | `index`, `step`, `total_steps`; `media_type`, `width`, `height`, `data` (base64) |
| `restore.started` | `index`: the restoration network is next for this picture |
| `image.completed` | `image`: an `ImageResult` |
| `job.succeeded` | `images`: list of `ImageResult` (empty for task `prompt`) |
| `job.failed` | `error`: a `Problem` |
| `job.canceled` | – |
"""

from enum import StrEnum
from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class EventType(StrEnum):
    """Names of the events; the last three end a stream."""

    QUEUED = "job.queued"
    STARTED = "job.started"
    PROMPT_DELTA = "prompt.delta"
    PROMPT_COMPLETED = "prompt.completed"
    AWAITING_APPROVAL = "job.awaiting_approval"
    RENDER_PROGRESS = "render.progress"
    RENDER_PREVIEW = "render.preview"
    RESTORE_STARTED = "restore.started"
    IMAGE_COMPLETED = "image.completed"
    SUCCEEDED = "job.succeeded"
    FAILED = "job.failed"
    CANCELED = "job.canceled"

    @property
    def ends_stream(self) -> bool:
        """Whether nothing can follow this event."""
        return self in {EventType.SUCCEEDED, EventType.FAILED, EventType.CANCELED}


class Event(BaseModel):
    """One event of one job. `id` is the stream entry's id, and so the SSE id."""

    model_config = ConfigDict(extra="forbid")

    id: str = Field(description="`<milliseconds>-<sequence>`, increasing within a job.")
    type: EventType
    job_id: str
    data: dict[str, Any] = Field(default_factory=dict)
