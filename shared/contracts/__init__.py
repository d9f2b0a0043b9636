"""The models that cross a process: requests, job records, events and problems.

They are the REST API's schemas and the queue's payloads at once, so that a field has one meaning everywhere.
"""

from shared.contracts.events import Event, EventType
from shared.contracts.generation import (
    GenerationRequest,
    HistoryTurn,
    Lane,
    Outpaint,
    OutputFormat,
    PromptMode,
    Restore,
    Scheduler,
    Size,
    Task,
)
from shared.contracts.images import UploadedImage
from shared.contracts.jobs import (
    TERMINAL,
    ArtifactName,
    GenerationPrompt,
    ImageArtifact,
    ImageResult,
    Job,
    JobList,
    JobStatus,
    Progress,
    QueuePosition,
    Stage,
    Timings,
)
from shared.contracts.openai_errors import OpenAIErrorEnvelope, openai_error, openai_status
from shared.contracts.problem import FieldProblem, OpenAIError, Problem
from shared.contracts.workers import Announcement, Phase, ServedModel

__all__ = [
    "TERMINAL",
    "Announcement",
    "ArtifactName",
    "Event",
    "EventType",
    "FieldProblem",
    "GenerationPrompt",
    "GenerationRequest",
    "HistoryTurn",
    "ImageArtifact",
    "ImageResult",
    "Job",
    "JobList",
    "JobStatus",
    "Lane",
    "OpenAIError",
    "OpenAIErrorEnvelope",
    "Outpaint",
    "OutputFormat",
    "Phase",
    "Problem",
    "Progress",
    "PromptMode",
    "QueuePosition",
    "Restore",
    "Scheduler",
    "ServedModel",
    "Size",
    "Stage",
    "Task",
    "Timings",
    "UploadedImage",
    "openai_error",
    "openai_status",
]
