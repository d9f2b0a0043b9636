"""The models that cross a process: requests, job records, events and problems.

They are the REST API's schemas and the queue's payloads at once, so that a field has one meaning everywhere.
"""

from shared.contracts.events import Event, EventType
from shared.contracts.generation import (
    GenerationRequest,
    Lane,
    OutputFormat,
    PromptMode,
    Scheduler,
    Size,
    Task,
)
from shared.contracts.images import UploadedImage
from shared.contracts.jobs import (
    TERMINAL,
    GenerationPrompt,
    ImageResult,
    Job,
    JobStatus,
    Progress,
    QueuePosition,
    Stage,
    Timings,
)
from shared.contracts.problem import FieldProblem, Problem
from shared.contracts.workers import Announcement, Phase, ServedModel

__all__ = [
    "TERMINAL",
    "Announcement",
    "Event",
    "EventType",
    "FieldProblem",
    "GenerationPrompt",
    "GenerationRequest",
    "ImageResult",
    "Job",
    "JobStatus",
    "Lane",
    "OutputFormat",
    "Phase",
    "Problem",
    "Progress",
    "PromptMode",
    "QueuePosition",
    "Scheduler",
    "ServedModel",
    "Size",
    "Stage",
    "Task",
    "Timings",
    "UploadedImage",
]
