"""From the hash that the server keeps to the job record that clients see."""

import asyncio
from collections.abc import Iterable, Mapping

from pydantic import TypeAdapter

from shared.contracts import (
    TERMINAL,
    GenerationPrompt,
    GenerationRequest,
    ImageResult,
    Job,
    JobStatus,
    Problem,
    Progress,
    QueuePosition,
    Stage,
    Task,
    Timings,
)
from shared.jobs.estimates import Outlook, remaining_ms
from shared.jobs.scripts import View

_TURN_JOBS = 16  # one or two milliseconds

_IMAGES = TypeAdapter(list[ImageResult])


def images_json(images: list[ImageResult]) -> str:
    """Return the pictures as the server keeps them."""
    return _IMAGES.dump_json(images).decode()


def job_of(view: View, job_id: str, request: GenerationRequest | None = None) -> Job:
    """Return the record of a viewed job with its place in the queue and its estimate; `request` spares reading it
    again."""
    job = job_from(view.record, job_id, request)
    if view.outlook is not None:
        if view.outlook.elapsed_ms is None:
            job.queue = QueuePosition(position=view.outlook.loads[0].earlier)
        job.eta_s = _eta_s(job, view.outlook, view.record)
    return job


async def jobs_of(page: Iterable[tuple[str, View]]) -> list[Job]:
    """Return the records of viewed jobs, and let others have their turn in between: many records take a while."""
    jobs: list[Job] = []
    for job_id, view in page:
        jobs.append(job_of(view, job_id))
        if len(jobs) % _TURN_JOBS == 0:
            await asyncio.sleep(0)
    return jobs


def _eta_s(job: Job, outlook: Outlook, record: Mapping[str, str]) -> float | None:
    stages = [Stage.RENDER] if job.stage is Stage.RENDER else [Stage.PROMPT]
    if job.stage is Stage.PROMPT and job.request.task is not Task.PROMPT and not job.request.approve:
        stages.append(Stage.RENDER)
    done = job.progress.step / job.progress.total_steps if job.progress else 0.0
    left_ms = remaining_ms(outlook, [int(record[f"charge:{stage}"]) for stage in stages], done)
    return None if left_ms is None else round(left_ms / 1000, 2)


def job_from(record: Mapping[str, str], job_id: str, request: GenerationRequest | None = None) -> Job:
    """Return the record of a job's hash."""
    if request is None:
        request = GenerationRequest.model_validate_json(record["request"])
    prompt, error = record.get("prompt"), record.get("error")
    return Job(
        id=job_id,
        status=JobStatus(record["status"]),
        stage=Stage(record["stage"]),
        attempts=int(record["attempts"]),
        created_at=int(record["created"]) / 1000,
        updated_at=int(record["updated"]) / 1000,
        session_id=record.get("session"),
        turn=int(record["turn"]) if "turn" in record else None,
        request=request,
        prompt=GenerationPrompt.model_validate_json(prompt) if prompt else None,
        images=_IMAGES.validate_json(record["images"]) if "images" in record else [],
        progress=_progress(record, request.n),
        timings=_timings(record),
        error=Problem.model_validate_json(error) if error else None,
    )


def _progress(record: Mapping[str, str], images: int) -> Progress | None:
    if "total_steps" not in record:
        return None
    done = sum(int(value) for field, value in record.items() if field.startswith("step:"))
    return Progress(step=done, total_steps=int(record["total_steps"]) * images)


def _timings(record: Mapping[str, str]) -> Timings:
    """Return the times of the stages that have ended; waiting and work of lost attempts are counted too."""
    ended = JobStatus(record["status"]) in TERMINAL
    stages = [Stage.PROMPT, Stage.RENDER] if ended else [Stage.PROMPT]
    if not ended and record["stage"] == Stage.PROMPT and record["status"] != JobStatus.AWAITING_APPROVAL:
        stages = []
    seconds = {
        f"{name}_s": int(record[f"ms:{name}"]) / 1000
        for stage in stages
        for name in (f"{stage}_queued", str(stage))
        if f"ms:{name}" in record
    }
    if ended:
        seconds["total_s"] = (int(record["finished"]) - int(record["created"])) / 1000
    return Timings(**seconds)
