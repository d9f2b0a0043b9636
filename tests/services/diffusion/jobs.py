"""Render jobs for the tests: complete requests, and what the queue tells of them."""

import asyncio
import uuid
from collections.abc import Callable
from contextlib import aclosing
from typing import Any

from shared.contracts import (
    Event,
    EventType,
    GenerationPrompt,
    GenerationRequest,
    Job,
    PromptMode,
    Scheduler,
    Stage,
)
from shared.jobs import EventFollower, JobQueue

WAIT_S = 120.0  # for a busy machine
PAUSE_S = 0.02


def job_request(**changes: Any) -> GenerationRequest:
    """Return a request as the gateway fills it in."""
    values: dict[str, Any] = {
        "instruction": "a red circle at night",
        "prompt_mode": PromptMode.VERBATIM,
        "model": "mini",
        "size": "128x128",
        "seed": 7,
        "num_inference_steps": 4,
        "guidance_scale": 7.5,
        "scheduler": Scheduler.DPMPP_2M,
    }
    return GenerationRequest(**(values | changes))


async def submit(
    queue: JobQueue, request: GenerationRequest | None = None, prompt: GenerationPrompt | None = None
) -> str:
    """Submit a job at the render stage; return its id."""
    request = request or job_request()
    job_id = uuid.uuid4().hex
    await queue.submit(
        request,
        job_id=job_id,
        stage=Stage.RENDER,
        prompt=prompt,
        batch_key=request.model or "",
        body_hash="0" * 64,
    )
    return job_id


async def until(queue: JobQueue, job_id: str, wanted: Callable[[Event], bool]) -> Event:
    """Return the first event of a job that is wanted."""
    follower = EventFollower(queue.redis, queue)
    try:
        async with asyncio.timeout(WAIT_S), aclosing(follower.follow(job_id)) as stream:
            async for event in stream:
                if event is not None and wanted(event):
                    return event
    finally:
        await follower.aclose()
    raise AssertionError("the job ended without it")


async def history(queue: JobQueue, job_id: str) -> list[Event]:
    """Return all events of a job when it has ended."""
    seen: list[Event] = []

    def keep(event: Event) -> bool:
        seen.append(event)
        return event.type.ends_stream

    await until(queue, job_id, keep)
    return seen


async def ended(queue: JobQueue, job_id: str) -> Job:
    """Return a job when it has ended."""
    await history(queue, job_id)
    return await queue.get(job_id)


async def eventually(check: Callable[[], bool]) -> None:
    """Return when the check holds."""
    for _ in range(int(WAIT_S / PAUSE_S)):
        if check():
            return
        await asyncio.sleep(PAUSE_S)
    raise AssertionError("it never came true")


def is_step(least: int) -> Callable[[Event], bool]:
    """Return the test for a progress of at least so many steps."""
    return lambda event: event.type is EventType.RENDER_PROGRESS and event.data["step"] >= least
