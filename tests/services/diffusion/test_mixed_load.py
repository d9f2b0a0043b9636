"""Jobs of every task in one worker at once: each gives the bytes that it gives alone, whatever becomes of others."""

import asyncio
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from services.diffusion.conditioning.encoder import PromptEncoder
from services.diffusion.consumer import Renderer
from services.diffusion.engine import Engine
from services.diffusion.loading import LoadedModel
from services.diffusion.restoration.restorer import Restorer
from services.diffusion.snapshots import AT_RISK_CALLS
from shared.artifacts import FolderStore
from shared.contracts import (
    Announcement,
    GenerationPrompt,
    GenerationRequest,
    Job,
    JobStatus,
    Lane,
    Outpaint,
    Phase,
    PromptMode,
    Restore,
    Scheduler,
    Stage,
    Task,
)
from shared.contracts.generation import EDIT_SCHEDULER, MAX_STEPS, PromptEncoding
from shared.jobs import Claim, Consumer, JobQueue
from shared.settings import QueueSettings, RedisSettings
from tests.services.diffusion.conftest import StartEngine
from tests.services.diffusion.jobs import ended, handled, is_step, job_request, submit, until
from tests.services.diffusion.pictures import PROMPTS
from tests.services.diffusion.restoration.networks import small_network
from tests.services.diffusion.sources import keep, oval, picture

KINDS = (Task.TEXT_TO_IMAGE, Task.SIMILAR, Task.INPAINT, Task.OUTPAINT, Task.EDIT, Task.EDIT)
GIVEN_MASK = 5  # of the kinds: an edit that does not look for its mask
SIZES = ("64x64", "64x96", "128x128")
WIDTH, HEIGHT = 101, 83  # of given pictures; multiples of no grid
NAN_PROMPT = "(" * 7_900 + "x"  # weights multiply beyond every number

StartRenderer = Callable[[], tuple[Renderer, Engine]]


@dataclass(frozen=True, slots=True)
class Wanted:
    """A job before it is submitted; `prompt` is what the language model has written, None if it is not asked."""

    request: GenerationRequest
    prompt: GenerationPrompt | None = None


@pytest.fixture
def queue_settings() -> QueueSettings:
    """Return settings whose leases last a whole test: nothing renews those of jobs alone."""
    return QueueSettings(lease_ms=300_000)


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    """Return an empty artifact store."""
    (tmp_path / "artifacts").mkdir()
    return FolderStore(tmp_path / "artifacts", retention_s=3_600)


@pytest.fixture
def start_renderer(
    start_engine: StartEngine, model: LoadedModel, inpainting_model: LoadedModel, store: FolderStore
) -> Iterator[StartRenderer]:
    """Yield a function that starts a renderer with a restoration network, as a service that was just started."""
    renderers: list[Renderer] = []

    def start() -> tuple[Renderer, Engine]:
        engine = start_engine(as_at_start_up(model), as_at_start_up(inpainting_model))
        renderers.append(Renderer(engine, store, restorer=Restorer(small_network())))
        return renderers[-1], engine

    yield start
    for renderer in renderers:
        renderer.close()


def as_at_start_up(model: LoadedModel) -> LoadedModel:
    """Return the model with an empty cache of embeddings."""
    return replace(model, encoder=PromptEncoder(model.text_encoders[0], model.device, model.dtype))


def drawn(number: int, store: FolderStore) -> Wanted:
    """Return the job of a number: tasks in turn, their ways in turn, everything else at random."""
    rng, turn, kind = random.Random(number), number // len(KINDS), number % len(KINDS)
    task = KINDS[kind]
    values: dict[str, Any] = {
        "task": task,
        "instruction": rng.choice(PROMPTS[:-1]),
        "negative_prompt": rng.choice(PROMPTS),
        "size": rng.choice(SIZES),
        "seed": 1_000 * number,
        "n": rng.choice((1, 1, 1, 2)),
        "num_inference_steps": rng.randint(3, 8),
        "guidance_scale": rng.choice((0.0, 1.0, 3.0, 7.5)),
        "scheduler": rng.choice(list(Scheduler)),
        "prompt_encoding": rng.choice(list(PromptEncoding)),
        "lane": rng.choice(list(Lane)),
    }
    if task is Task.TEXT_TO_IMAGE:
        return Wanted(job_request(**values))
    values["image"] = keep(store, picture(WIDTH, HEIGHT, number))
    if task is Task.INPAINT or kind == GIVEN_MASK:
        values["mask"] = keep(store, oval(WIDTH, HEIGHT).astype(np.uint8) * 255)
    if task in (Task.INPAINT, Task.OUTPAINT):
        values |= {
            "model": ("mini-inpaint", "mini")[turn % 2],
            "restore": (Restore.OFF, Restore.ON, Restore.AUTO)[turn % 3],
            "feather_px": rng.randint(0, 9),
        }
    if task is Task.OUTPAINT:
        values["outpaint"] = Outpaint(left=rng.randint(1, 40), bottom=rng.randint(0, 40))
    if task in (Task.SIMILAR, Task.INPAINT):
        values["strength"] = rng.choice((0.5, 0.8, 1.0))
    if task is Task.EDIT:
        values |= {
            "prompt_mode": PromptMode.REFINE,
            "scheduler": EDIT_SCHEDULER,
            "edit_strength": rng.choice((0.6, 0.75)),
            "source_guidance_scale": 3.5,
        }
        return Wanted(
            job_request(**values), GenerationPrompt(text="a blue square", source="mllm", source_caption="a red circle")
        )
    if task is Task.SIMILAR:
        values["prompt_mode"] = PromptMode.REFINE
        return Wanted(job_request(**values), GenerationPrompt(text=values["instruction"], source="mllm"))
    return Wanted(job_request(**values))


async def together(
    queue: JobQueue, settings: RedisSettings, renderer: Renderer, jobs: Sequence[Wanted], canceled: int
) -> list[Job]:
    """Return jobs that a worker had in hand all at once; the one at `canceled` is canceled on its way."""
    claims = 0
    all_are_here, stop = asyncio.Event(), asyncio.Event()

    async def handle(claim: Claim) -> None:
        nonlocal claims
        claims += 1
        if claims == len(jobs):
            all_are_here.set()
        await all_are_here.wait()
        await renderer.handle(claim)

    consumer = Consumer(
        queue,
        settings,
        stage=Stage.RENDER,
        worker="worker-1",
        handle=handle,
        capacity=len(jobs),
        announcement=lambda: Announcement(worker="worker-1", stage=Stage.RENDER, phase=Phase.READY),
    )
    ids = [await submit(queue, job.request, job.prompt) for job in jobs]
    working = asyncio.create_task(consumer.run(stop, drain_s=60))
    try:
        await until(queue, ids[canceled], is_step(AT_RISK_CALLS + 1))  # a snapshot of it is kept by then
        await queue.cancel(ids[canceled])
        return [await ended(queue, job_id) for job_id in ids]
    finally:
        stop.set()
        await working


@pytest.mark.parametrize("count", [15, pytest.param(50, marks=pytest.mark.deep)])
async def test_a_mixed_load_is_the_same_bytes_as_each_job_alone(
    queue: JobQueue, redis_settings: RedisSettings, start_renderer: StartRenderer, store: FolderStore, count: int
) -> None:
    broken = Wanted(job_request(instruction=NAN_PROMPT, num_inference_steps=9))
    dropped = Wanted(job_request(num_inference_steps=MAX_STEPS, n=2))
    sound = [drawn(number, store) for number in range(count - 2)]
    (renderer, crowded), (other, alone) = start_renderer(), start_renderer()

    *beside, failed, canceled = await together(
        queue, redis_settings, renderer, [*sound, broken, dropped], canceled=count - 1
    )
    assert canceled.status is JobStatus.CANCELED
    assert failed.error is not None
    assert (failed.status, failed.error.code, failed.attempts) == (JobStatus.FAILED, "render_failed", 1)
    assert [job.status for job in beside] == [JobStatus.SUCCEEDED] * len(sound), [job.error for job in beside]
    assert [job.attempts for job in beside] == [1] * len(sound)
    assert crowded.held == 0
    assert not list((store.root / "states").glob("*"))

    for wanted, job in zip(sound, beside, strict=True):
        by_itself = await handled(queue, other, wanted.request, wanted.prompt)
        assert by_itself.images == job.images, (wanted.request.task, wanted.request.seed)
    pictures = [image.sha256 for job in beside for image in job.images]
    assert len(set(pictures)) == len(pictures) == sum(wanted.request.n for wanted in sound)
    crowded_rows, alone_rows = (engine.counters.rows / engine.counters.calls for engine in (crowded, alone))
    assert crowded_rows > 1.3 * alone_rows, "calls were shared"
