"""Render jobs through the real queue: claimed, rendered, stored, told, canceled."""

import asyncio
import io
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from services.diffusion.checkpoints import UnfitCheckpoint
from services.diffusion.consumer import Renderer
from services.diffusion.credentials import SOFTWARE
from services.diffusion.engine import Engine
from services.diffusion.inputs import Inputs
from services.diffusion.library import ModelLibrary, Shelf
from services.diffusion.loading import LoadedModel
from services.diffusion.planning import make_plan
from shared.artifacts import FolderStore
from shared.contracts import (
    Announcement,
    EventType,
    GenerationPrompt,
    JobStatus,
    OutputFormat,
    Phase,
    Scheduler,
    Stage,
)
from shared.errors import StoreUnavailable
from shared.jobs import DEFAULT_TENANT, Claim, Consumer, JobQueue
from shared.media import ImageLimits, SourceType, decode_image, read_text
from shared.settings import RedisSettings
from tests.services.diffusion.conftest import StartEngine
from tests.services.diffusion.instruments import held
from tests.services.diffusion.jobs import ended, eventually, history, is_step, job_request, submit, until
from tests.services.diffusion.pictures import png, render, request_for

WORKER = "test-1-a"
Handler = Callable[[Claim], Awaitable[None]]


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    """Return an empty artifact store."""
    folder = tmp_path / "artifacts"
    folder.mkdir()
    return FolderStore(folder, retention_s=3_600)


@pytest.fixture
def renderer(engine: Engine, store: FolderStore) -> Iterator[Renderer]:
    """Yield a renderer over the run's checkpoint."""
    renderer = Renderer(engine, store)
    yield renderer
    renderer.close()


@asynccontextmanager
async def working(
    queue: JobQueue,
    settings: RedisSettings,
    handle: Handler,
    worker: str = WORKER,
    *,
    serves: ModelLibrary | None = None,
) -> AsyncIterator[Consumer]:
    """Run a consumer meanwhile; it claims what is in the library, or anything."""

    def announcement() -> Announcement:
        return Announcement(worker=worker, stage=Stage.RENDER, phase=Phase.READY)

    consumer = Consumer(
        queue,
        settings,
        stage=Stage.RENDER,
        worker=worker,
        handle=handle,
        capacity=4,
        announcement=announcement,
        batch_keys=None if serves is None else serves.wanted,
    )
    stop = asyncio.Event()
    task = asyncio.create_task(consumer.run(stop, drain_s=60))
    try:
        yield consumer
    finally:
        stop.set()
        await task


async def test_a_job_becomes_pictures_with_seeds_in_order(
    queue: JobQueue, redis_settings: RedisSettings, renderer: Renderer, store: FolderStore, model: LoadedModel
) -> None:
    async with working(queue, redis_settings, renderer.handle):
        job_id = await submit(queue, job_request(n=3, negative_prompt="a boat"))
        told = await history(queue, job_id)
        job = await queue.get(job_id)
    assert job.status is JobStatus.SUCCEEDED
    assert [image.seed for image in job.images] == [7, 8, 9]
    assert [image.index for image in job.images] == [0, 1, 2]
    assert len({image.id for image in job.images}) == 3
    assert job.prompt is not None
    assert job.prompt.prompt_tokens == len(model.vocabulary.ids("a red circle at night"))
    assert job.prompt.truncated_tokens == 0
    assert job.progress is not None
    assert (job.progress.step, job.progress.total_steps) == (12, 12)
    completed = [event.data["image"] for event in told if event.type is EventType.IMAGE_COMPLETED]
    by_index = sorted(completed, key=lambda image: int(image["index"]))
    assert by_index == [image.model_dump(mode="json") for image in job.images]
    for index in range(3):
        steps = [
            event.data["step"]
            for event in told
            if event.type is EventType.RENDER_PROGRESS and event.data["index"] == index
        ]
        assert steps == sorted(set(steps))
        assert steps[-1] == 4
    data, stored = store.get(job.images[1].id, tenant=DEFAULT_TENANT)
    assert stored.sha256 == job.images[1].sha256
    assert len(data) == job.images[1].bytes
    assert job.images[1].url == f"/v1/images/{stored.id}"


async def test_the_file_says_how_it_was_made_and_can_be_made_again(
    queue: JobQueue,
    redis_settings: RedisSettings,
    renderer: Renderer,
    store: FolderStore,
    engine: Engine,
    model: LoadedModel,
) -> None:
    request = job_request(negative_prompt="雪人", scheduler=Scheduler.EULER_ANCESTRAL, prompt_encoding="stock")
    async with working(queue, redis_settings, renderer.handle):
        job = await ended(queue, await submit(queue, request))
    data, stored = store.get(job.images[0].id, tenant=DEFAULT_TENANT)
    parameters = json.loads(read_text(data)["llmga"])
    assert parameters == dict(stored.metadata)
    assert parameters == {
        "task": "text_to_image",
        "instruction": "a red circle at night",
        "prompt": "a red circle at night",
        "prompt_source": "verbatim",
        "prompt_model": None,
        "negative_prompt": "雪人",
        "prompt_encoding": "stock",
        "prompt_tokens": 5,
        "truncated_tokens": 0,
        "negative_truncated_tokens": 0,
        "seed": 7,
        "num_inference_steps": 4,
        "guidance_scale": 7.5,
        "scheduler": "euler_ancestral",
        "size": "128x128",
        "model": "mini",
        "model_sha256": model.files.sha256,
        "dtype": "float32",
        "guidance_rescale": 0.0,
        "guidance_interval": [0.0, 1.0],
        "clip_skip": 0,
        "adapters": [],
        "software": SOFTWARE,
    }
    pixels = await render(
        engine,
        request_for(
            model,
            parameters["prompt"],
            parameters["negative_prompt"],
            seed=parameters["seed"],
            steps=parameters["num_inference_steps"],
            guidance=parameters["guidance_scale"],
            scheduler=Scheduler(parameters["scheduler"]),
        ),
    )
    assert np.array_equal(decode_image(data, ImageLimits()), pixels)


async def test_the_same_job_again_stores_the_same_pictures(
    queue: JobQueue, redis_settings: RedisSettings, renderer: Renderer
) -> None:
    async with working(queue, redis_settings, renderer.handle):
        first, second = [await submit(queue, job_request(n=2)) for _ in range(2)]
        one, other = await ended(queue, first), await ended(queue, second)
    assert one.images == other.images


@pytest.mark.parametrize("output_format", list(OutputFormat))
async def test_every_output_format(
    queue: JobQueue,
    redis_settings: RedisSettings,
    renderer: Renderer,
    store: FolderStore,
    output_format: OutputFormat,
) -> None:
    async with working(queue, redis_settings, renderer.handle):
        job = await ended(queue, await submit(queue, job_request(output_format=output_format, size="64x72")))
    data, stored = store.get(job.images[0].id, tenant=DEFAULT_TENANT)
    assert stored.media_type == job.images[0].media_type == output_format.media_type
    assert decode_image(data, ImageLimits()).shape == (72, 64, 3)
    with Image.open(io.BytesIO(data)) as image:
        assert SourceType.GENERATED in str(image.info["xmp"])
    assert json.loads(read_text(data)["llmga"])["seed"] == 7


async def test_a_prompt_of_the_language_model_is_taken_literally(queue: JobQueue, model: LoadedModel) -> None:
    text = "a house (a square) " * 60
    plans = []
    for source in ("mllm", "edited", "verbatim"):
        prompt = GenerationPrompt(text=text, source=source)
        await submit(queue, job_request(), prompt)
        claim = await queue.claim(Stage.RENDER, worker=WORKER)
        assert claim is not None
        plans.append(make_plan(claim.job, model, Inputs()))
        await claim.fail(StoreUnavailable("the test is over", retry_after_s=1))
    literal, edited, verbatim = plans
    assert literal.prompts.prompt.weights is None
    assert literal.parameters["truncated_tokens"] > 0
    assert edited.prompts.prompt.weights is not None
    assert edited.prompts == verbatim.prompts


async def test_a_cancel_stops_the_unet_at_the_next_step(
    queue: JobQueue,
    redis_settings: RedisSettings,
    start_engine: StartEngine,
    store: FolderStore,
    model: LoadedModel,
) -> None:
    gated, unet = held(model)
    engine = start_engine(gated)
    renderer = Renderer(engine, store)
    claims: list[Claim] = []

    async def handle(claim: Claim) -> None:
        claims.append(claim)
        await renderer.handle(claim)

    async with working(queue, redis_settings, handle):
        job_id = await submit(queue, job_request(num_inference_steps=20))
        unet.allow(2)
        for _ in range(3):
            await asyncio.to_thread(unet.wait_for_call)
        await until(queue, job_id, is_step(2))  # so that no event is left whose refusal would tell of the cancel
        job = await queue.cancel(job_id)
        assert job.status is JobStatus.CANCELED
        await claims[0].lost.wait()
        unet.allow(100)
        await eventually(lambda: engine.held == 0)
        assert engine.counters.calls == 3, "the call that was under way is the last"
    renderer.close()
    told = await history(queue, job_id)
    assert told[-1].type is EventType.CANCELED
    assert not list(store.root.glob("??/*"))


async def test_what_cannot_be_rendered_fails_with_its_reason(
    queue: JobQueue, redis_settings: RedisSettings, renderer: Renderer
) -> None:
    async with working(queue, redis_settings, renderer.handle):
        lcm = await submit(queue, job_request(scheduler=Scheduler.LCM, num_inference_steps=51))
        weights = await submit(queue, job_request(instruction="(" * 7_900 + "x"))
        layers = await submit(queue, job_request(clip_skip=3))
        refused, broken, shallow = await ended(queue, lcm), await ended(queue, weights), await ended(queue, layers)
    assert refused.status is broken.status is JobStatus.FAILED
    assert refused.error is not None
    assert refused.error.code == "invalid_request"
    assert "50 steps" in refused.error.detail
    assert shallow.error is not None
    assert [(problem.field, problem.message) for problem in shallow.error.errors] == [
        ("clip_skip", "must be at most 2 for this model")
    ]
    assert broken.error is not None
    assert broken.error.code == "render_failed"
    assert refused.attempts == broken.attempts == 1


async def test_a_store_that_is_full_is_tried_again_and_leaves_nothing_in_the_engine(
    queue: JobQueue,
    redis_settings: RedisSettings,
    engine: Engine,
    renderer: Renderer,
    store: FolderStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def put(*_: Any, **__: Any) -> None:
        raise StoreUnavailable("The picture could not be stored.", retry_after_s=30)

    monkeypatch.setattr(store, "put", put)
    async with working(queue, redis_settings, renderer.handle):
        job = await ended(queue, await submit(queue, job_request(n=4)))
        await eventually(lambda: engine.held == 0)
    assert job.status is JobStatus.FAILED
    assert job.attempts == queue.settings.max_attempts
    assert [letter.id for letter in await queue.dead_letters()] == [job.id]


async def test_a_slow_queue_gets_fewer_events_and_stalls_nobody(
    queue: JobQueue, redis_settings: RedisSettings, renderer: Renderer, engine: Engine
) -> None:
    finished_first: list[bool] = []

    async def slowly(claim: Claim) -> None:
        emit = claim.emit

        async def late(event: EventType, data: Mapping[str, Any]) -> None:
            if event is EventType.RENDER_PROGRESS:
                await eventually(lambda: engine.counters.steps == 60)
                finished_first.append(True)
            await emit(event, data)

        claim.emit = late  # type: ignore[method-assign]  # the queue as a slow network shows it
        await renderer.handle(claim)

    async with working(queue, redis_settings, slowly):
        job_id = await submit(queue, job_request(num_inference_steps=60))
        told = await history(queue, job_id)
    steps = [event.data["step"] for event in told if event.type is EventType.RENDER_PROGRESS]
    assert finished_first
    assert len(steps) <= 3
    assert steps[-1] == 60
    assert told[-1].type is EventType.SUCCEEDED


async def test_a_job_of_another_workers_model_is_left_to_that_worker(
    queue: JobQueue,
    redis_settings: RedisSettings,
    engine: Engine,
    renderer: Renderer,
    start_engine: StartEngine,
    store: FolderStore,
    model: LoadedModel,
) -> None:
    stranger = replace(model, name="other")
    other = Renderer(start_engine(stranger), store)
    async with working(queue, redis_settings, renderer.handle, serves=ModelLibrary.of(model)):
        job_id = await submit(queue, job_request(model="other"))
        own = await ended(queue, await submit(queue, job_request()))
        assert own.status is JobStatus.SUCCEEDED, "a later job, which it serves"
        assert (await queue.get(job_id)).attempts == 0
        calls = engine.counters.calls
        async with working(queue, redis_settings, other.handle, "test-2-b", serves=ModelLibrary.of(stranger)):
            job = await ended(queue, job_id)
    other.close()
    assert job.status is JobStatus.SUCCEEDED
    assert job.attempts == 1
    assert engine.counters.calls == calls


async def test_a_job_that_was_handed_to_a_worker_without_its_model_fails_with_those_that_it_has(
    queue: JobQueue, redis_settings: RedisSettings, renderer: Renderer
) -> None:
    async with working(queue, redis_settings, renderer.handle):
        job = await ended(queue, await submit(queue, job_request(model="other")))
    assert job.error is not None
    assert (job.error.code, job.error.served_models) == ("model_not_served", ["mini"])


async def test_one_worker_serves_models_that_do_not_fit_together(
    queue: JobQueue,
    redis_settings: RedisSettings,
    start_engine: StartEngine,
    store: FolderStore,
    model: LoadedModel,
) -> None:
    shelves = {name: Shelf(model.files, model.bytes) for name in ("mini", "other", "broken")}

    def load(name: str, _: Shelf) -> LoadedModel:
        if name == "broken":
            raise UnfitCheckpoint("its files were changed")
        return replace(model, name=name)

    library = ModelLibrary(shelves, load, budget_bytes=model.bytes)
    engine = start_engine(models=library.loaded)
    renderer = Renderer(engine, store, library)
    async with working(queue, redis_settings, renderer.handle, serves=library):
        jobs = [await submit(queue, job_request(model=name)) for name in ("mini", "other", "broken", "mini", "other")]
        done = [await ended(queue, job_id) for job_id in jobs]
    renderer.close()
    assert [job.error and job.error.code for job in done] == [None, None, "model_unavailable", None, None]
    assert len({job.images[0].id for job in done if job.images}) == 2, "one artifact of each model: its name is in it"
    assert len(library.loaded) <= 1


async def test_two_pictures_of_one_seed_are_one_artifact(
    queue: JobQueue,
    redis_settings: RedisSettings,
    renderer: Renderer,
    store: FolderStore,
    engine: Engine,
    model: LoadedModel,
) -> None:
    async with working(queue, redis_settings, renderer.handle):
        one = await ended(queue, await submit(queue, job_request(seed=1, n=2)))
        two = await ended(queue, await submit(queue, job_request(seed=2)))
    assert one.images[1].id == two.images[0].id
    again = png(await render(engine, request_for(model, "a red circle at night", seed=2, scheduler=Scheduler.DPMPP_2M)))
    data, _ = store.get(two.images[0].id, tenant=DEFAULT_TENANT)
    assert np.array_equal(decode_image(again, ImageLimits()), decode_image(data, ImageLimits()))
