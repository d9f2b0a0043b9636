"""Render jobs for the tests: complete requests, and what the queue tells of them."""

import asyncio
import uuid
from collections.abc import Callable
from contextlib import aclosing
from typing import Any

from services.diffusion.consumer import Renderer
from services.diffusion.engine import Engine
from services.diffusion.loading import LoadedModel
from shared.artifacts import FolderStore
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
from shared.errors import LLMGAError
from shared.jobs import Claim, EventFollower, JobQueue
from tests.services.diffusion.conftest import StartEngine

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


async def claimed(queue: JobQueue, request: GenerationRequest, prompt: GenerationPrompt | None = None) -> Claim:
    """Return a claim on a new job."""
    await submit(queue, request, prompt)
    claim = await queue.claim(Stage.RENDER, worker="worker-1")
    assert claim is not None
    return claim


async def handled(
    queue: JobQueue, renderer: Renderer, request: GenerationRequest, prompt: GenerationPrompt | None = None
) -> Job:
    """Return a new job when it has ended."""
    claim = await claimed(queue, request, prompt)
    try:
        await renderer.handle(claim)
    except LLMGAError as error:
        await claim.fail(error)
    return await queue.get(claim.job.id)


async def handled_by_two(
    queue: JobQueue,
    store: FolderStore,
    start_engine: StartEngine,
    model: LoadedModel,
    request: GenerationRequest,
    prompt: GenerationPrompt | None = None,
) -> tuple[Job, Job, Engine]:
    """Return a job that one worker has ended, the same with another worker that goes on when the first is gone, and
    the engine of that other one."""
    first, second = Renderer(start_engine(model), store), None
    try:
        whole = await handled(queue, first, request, prompt)
        claim = await claimed(queue, request, prompt)
        dying = asyncio.create_task(first.handle(claim))
        await eventually(lambda: (store.root / "states" / f"{claim.job.id}.0").exists())
        dying.cancel()
        await asyncio.gather(dying, return_exceptions=True)
        await claim.release()

        engine = start_engine(model)
        second = Renderer(engine, store)
        again = await queue.claim(Stage.RENDER, worker="worker-2")
        assert again is not None
        await second.handle(again)
    finally:
        for renderer in (first, second):
            if renderer is not None:
                renderer.close()
    return whole, await queue.get(claim.job.id), engine


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
