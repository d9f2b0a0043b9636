"""Previews as followers get them: bounded, in order, never behind the end, never twice."""

import asyncio
import base64
import io
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from services.diffusion import showing
from services.diffusion.consumer import Renderer
from services.diffusion.loading import LoadedModel
from services.diffusion.showing import MAX_BYTES, MAX_JOB_BYTES, state_name
from services.diffusion.stages import Pixels
from shared.artifacts import FolderStore
from shared.contracts import Event, EventType, JobStatus, Scheduler, Stage
from shared.contracts.generation import MAX_IMAGES, MAX_PREVIEWS
from shared.jobs import JobQueue
from shared.media import encode_thumbnail
from tests.services.diffusion.conftest import StartEngine
from tests.services.diffusion.instruments import WAIT_S, held
from tests.services.diffusion.jobs import eventually, history, job_request, submit

StartRenderer = Callable[[LoadedModel], Renderer]


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path, retention_s=3_600)


@pytest.fixture
def start_renderer(start_engine: StartEngine, store: FolderStore) -> Iterator[StartRenderer]:
    started: list[Renderer] = []

    def start(model: LoadedModel) -> Renderer:
        started.append(Renderer(start_engine(model), store))
        return started[-1]

    yield start
    for renderer in started:
        renderer.close()


async def handled(queue: JobQueue, renderer: Renderer) -> None:
    claim = await queue.claim(Stage.RENDER, worker="worker-1")
    assert claim is not None
    await renderer.handle(claim)


def noise(latents: torch.Tensor) -> torch.Tensor:
    """Draw the preview that takes most bytes."""
    return torch.randint(0, 256, (256, 256, 3), dtype=torch.uint8)


def shown(told: list[Event], index: int = 0) -> list[int]:
    return [
        event.data["step"] for event in told if event.type is EventType.RENDER_PREVIEW and event.data["index"] == index
    ]


async def test_a_follower_sees_previews_in_order_and_none_behind_the_picture(
    queue: JobQueue, start_renderer: StartRenderer, model: LoadedModel, store: FolderStore
) -> None:
    renderer = start_renderer(model)
    plain = await submit(queue, job_request(num_inference_steps=8, n=2, scheduler=Scheduler.DDIM))
    await handled(queue, renderer)
    job_id = await submit(queue, job_request(num_inference_steps=8, n=2, scheduler=Scheduler.DDIM, previews=8))
    await handled(queue, renderer)
    told = await history(queue, job_id)
    for index in range(2):
        steps = shown(told, index)
        assert steps == sorted(set(steps))
        assert all(0 < step < 8 for step in steps)
        kinds = [event.type for event in told if event.data.get("image", event.data).get("index") == index]
        assert kinds[-1] is EventType.IMAGE_COMPLETED
    assert any(shown(told, index) for index in range(2))
    first = next(event.data for event in told if event.type is EventType.RENDER_PREVIEW)
    with Image.open(io.BytesIO(base64.b64decode(first["data"])), formats=["JPEG"]) as image:
        assert image.size == (first["width"], first["height"]) == (16, 16)
    images = [(await queue.get(one)).images for one in (plain, job_id)]
    assert images[0] == images[1], "the same files under the same names"
    assert not list((store.root / "states").glob("*"))


@pytest.mark.parametrize(("n", "previews"), [(1, 1), (MAX_IMAGES, MAX_PREVIEWS)])
async def test_previews_are_bounded_alone_and_together(
    queue: JobQueue, start_renderer: StartRenderer, model: LoadedModel, n: int, previews: int
) -> None:
    renderer = start_renderer(replace(model, previewer=noise))
    job_id = await submit(
        queue, job_request(size="64x64", num_inference_steps=2, n=n, scheduler=Scheduler.DDIM, previews=previews)
    )
    await handled(queue, renderer)
    sizes = [
        len(event.data["data"]) * 3 // 4
        for event in await history(queue, job_id)
        if event.type is EventType.RENDER_PREVIEW
    ]
    assert sizes
    assert max(sizes) <= MAX_BYTES + 2
    assert max(sizes) <= MAX_JOB_BYTES // (n * previews) + 2


async def test_a_job_that_goes_on_shows_no_step_twice(
    queue: JobQueue, start_renderer: StartRenderer, model: LoadedModel, store: FolderStore
) -> None:
    gated, unet = held(model)
    renderer = start_renderer(gated)
    job_id = await submit(queue, job_request(num_inference_steps=4, scheduler=Scheduler.DDIM, previews=3))
    store.save_state(state_name(job_id, 0), b"2")  # what a worker that died had shown; its snapshot was older
    handling = asyncio.create_task(handled(queue, renderer))
    for _ in range(4):  # one at a time, so that there is time for all
        await asyncio.to_thread(unet.wait_for_call)
        await asyncio.sleep(0.1)
        unet.allow()
    await handling
    assert (await queue.get(job_id)).status is JobStatus.SUCCEEDED
    assert set(shown(await history(queue, job_id))) <= {3}


async def test_a_preview_that_is_late_is_left_out(
    queue: JobQueue, start_renderer: StartRenderer, model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_first = True
    is_completed, is_encoded = threading.Event(), threading.Event()

    def late(pixels: Pixels, max_bytes: int) -> tuple[bytes, int, int]:
        nonlocal is_first
        if not is_first:
            return encode_thumbnail(pixels, max_bytes)
        is_first = False
        assert is_completed.wait(WAIT_S)
        is_encoded.set()
        return encode_thumbnail(pixels, max_bytes)

    monkeypatch.setattr(showing, "encode_thumbnail", late)
    renderer = start_renderer(model)
    job_id = await submit(queue, job_request(num_inference_steps=8, n=2, scheduler=Scheduler.DDIM, previews=7))
    claim = await queue.claim(Stage.RENDER, worker="worker-1")
    assert claim is not None
    emit = claim.emit

    async def watched(event: EventType, data: Mapping[str, Any]) -> None:
        if event is EventType.IMAGE_COMPLETED and data["image"]["index"] == 1:
            await eventually(is_encoded.is_set)
            await asyncio.sleep(0.2)  # the job goes on: what is not withdrawn is sent now
        await emit(event, data)
        if event is EventType.IMAGE_COMPLETED and data["image"]["index"] == 0:
            is_completed.set()

    claim.emit = watched  # type: ignore[method-assign]  # the queue's own, with a look at what is sent
    await renderer.handle(claim)
    told = await history(queue, job_id)
    assert told[-1].type is EventType.SUCCEEDED
    assert shown(told, 0) == []
