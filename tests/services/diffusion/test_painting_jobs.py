"""Painting in part through the real queue and store: inpaint, outpaint, and pictures that start from another."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from services.diffusion.canvas import Canvas
from services.diffusion.consumer import Renderer
from services.diffusion.inputs import fitted
from services.diffusion.loading import LoadedModel
from services.diffusion.snapshots import EVERY_CALLS
from services.diffusion.sources import Pixels, Source
from shared.artifacts import FolderStore
from shared.contracts import (
    GenerationPrompt,
    GenerationRequest,
    Job,
    JobStatus,
    Outpaint,
    Scheduler,
    Task,
)
from shared.jobs import DEFAULT_TENANT, JobQueue
from shared.media import decode_image, extended, read_text
from tests.services.diffusion.conftest import StartEngine
from tests.services.diffusion.jobs import handled, handled_by_two, job_request
from tests.services.diffusion.pictures import render, request_for
from tests.services.diffusion.sources import keep, near, oval, picture

FEATHER_PX = 6


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    """Return an empty artifact store."""
    (tmp_path / "artifacts").mkdir()
    return FolderStore(tmp_path / "artifacts", retention_s=3_600)


@pytest.fixture
def renderer(
    start_engine: StartEngine, model: LoadedModel, inpainting_model: LoadedModel, store: FolderStore
) -> Iterator[Renderer]:
    """Yield a renderer over a text-to-image checkpoint and an inpainting one."""
    renderer = Renderer(start_engine(model, inpainting_model), store)
    yield renderer
    renderer.close()


def mask_for(width: int, height: int) -> Pixels:
    """Return a mask with a painted oval."""
    return oval(width, height).astype(np.uint8) * 255


def painting(task: Task, **changes: Any) -> GenerationRequest:
    """Return a request for a job that paints in part, as the gateway fills it in."""
    return job_request(**({"task": task, "size": "64x64", "feather_px": FEATHER_PX} | changes))


def picture_of(store: FolderStore, job: Job, index: int = 0) -> Pixels:
    """Return a finished picture of a job."""
    assert job.status is JobStatus.SUCCEEDED, job.error
    return decode_image(store.get(job.images[index].id, tenant=DEFAULT_TENANT)[0])


@pytest.mark.parametrize("name", ["mini", "mini-inpaint"])
async def test_an_inpainted_picture_has_its_size_and_keeps_every_known_pixel(
    queue: JobQueue, renderer: Renderer, store: FolderStore, name: str
) -> None:
    before, mask = picture(150, 90), mask_for(150, 90)
    request = painting(Task.INPAINT, model=name, image=keep(store, before), mask=keep(store, mask), n=2)
    job = await handled(queue, renderer, request)
    first, second = (picture_of(store, job, index) for index in range(2))
    known = ~near(mask, FEATHER_PX)
    for after in (first, second):
        assert after.shape == before.shape
        assert np.array_equal(after[known], before[known])
    assert not np.array_equal(first, second), "each has its own seed"
    assert known.mean() > 0.5
    assert (job.images[0].width, job.images[0].height) == (150, 90)


async def test_an_inpaint_is_the_engines_picture_put_into_the_canvas_and_the_file_says_how(
    queue: JobQueue, renderer: Renderer, store: FolderStore, start_engine: StartEngine, inpainting_model: LoadedModel
) -> None:
    before, mask = picture(100, 80), mask_for(100, 80)
    request = painting(
        Task.INPAINT, model="mini-inpaint", image=keep(store, before), mask=keep(store, mask), strength=0.75
    )
    job = await handled(queue, renderer, request)
    canvas = Canvas(before, mask, (64, 64), FEATHER_PX)
    rendered = await render(
        start_engine(inpainting_model),
        request_for(
            inpainting_model,
            "a red circle at night",
            encoding=request.prompt_encoding,
            size=(64, 64),
            seed=7,
            scheduler=Scheduler.DPMPP_2M,
            source=canvas.source(0.75),
        ),
    )
    assert np.array_equal(picture_of(store, job), canvas.blended(rendered))
    data, stored = store.get(job.images[0].id, tenant=DEFAULT_TENANT)
    parameters = json.loads(read_text(data)["llmga"])
    assert parameters == dict(stored.metadata)
    told = {
        "task": "inpaint",
        "image": request.image,
        "mask": request.mask,
        "strength": 0.75,
        "feather_px": FEATHER_PX,
        "restoration": "blend",
        "size": "64x64",
    }
    assert told.items() <= parameters.items()
    assert job.progress is not None
    assert (job.progress.step, job.progress.total_steps) == (3, 3)


@pytest.mark.parametrize("name", ["mini", "mini-inpaint"])
async def test_an_outpainted_picture_holds_the_old_one(
    queue: JobQueue, renderer: Renderer, store: FolderStore, name: str
) -> None:
    before = picture(90, 50)
    outpaint = Outpaint(left=40, bottom=25)
    request = painting(Task.OUTPAINT, model=name, image=keep(store, before), outpaint=outpaint)
    job = await handled(queue, renderer, request)
    after = picture_of(store, job)
    assert after.shape == (75, 130, 3)
    assert np.array_equal(after[: 50 - FEATHER_PX, 40 + FEATHER_PX :], before[:-FEATHER_PX, FEATHER_PX:])
    assert json.loads(read_text(store.get(job.images[0].id, tenant=DEFAULT_TENANT)[0])["llmga"])["outpaint"] == {
        "left": 40,
        "top": 0,
        "right": 0,
        "bottom": 25,
    }


async def test_a_similar_picture_with_a_strength_starts_from_the_image(
    queue: JobQueue, renderer: Renderer, store: FolderStore, start_engine: StartEngine, model: LoadedModel
) -> None:
    before = picture(100, 64)
    request = painting(Task.SIMILAR, image=keep(store, before), strength=0.5, prompt_mode="refine")
    prompt = GenerationPrompt(text=request.instruction, source="edited")
    after = picture_of(store, await handled(queue, renderer, request, prompt))
    rendered = await render(
        start_engine(model),
        request_for(
            model,
            "a red circle at night",
            encoding=request.prompt_encoding,
            size=(64, 64),
            seed=7,
            scheduler=Scheduler.DPMPP_2M,
            source=Source(fitted(before, (64, 64)), None, 0.5),
        ),
    )
    assert np.array_equal(after, rendered)
    assert np.array_equal(fitted(before, (64, 64)), before[:, 18:82]), "cut, not squeezed"


async def test_what_cannot_be_painted_is_refused_with_the_field_at_fault(
    queue: JobQueue, renderer: Renderer, store: FolderStore
) -> None:
    image = keep(store, picture(80, 60))
    cases = {
        "wrong_size": painting(Task.INPAINT, image=image, mask=keep(store, mask_for(60, 80))),
        "nothing_to_paint": painting(Task.INPAINT, image=image, mask=keep(store, np.full((60, 80), 124, np.uint8))),
        "not_found": painting(Task.INPAINT, image=image, mask="img_" + "0" * 40),
        "not_offered": painting(Task.TEXT_TO_IMAGE, model="mini-inpaint"),
        "too_small": painting(Task.INPAINT, image=image, mask=keep(store, mask_for(80, 60)), strength=0.1),
    }
    for code, request in cases.items():
        job = await handled(queue, renderer, request)
        assert job.status is JobStatus.FAILED
        assert job.error is not None
        assert [problem.code for problem in job.error.errors] == [code]
        assert job.attempts == 1
    assert "60x80" in message_of(await handled(queue, renderer, cases["wrong_size"]))
    assert "80x60" in message_of(await handled(queue, renderer, cases["wrong_size"]))


async def test_masks_that_paint_all_and_pictures_of_one_pixel_are_painted(
    queue: JobQueue, renderer: Renderer, store: FolderStore
) -> None:
    for width, height in ((1, 1), (1, 70), (64, 64)):
        request = painting(
            Task.INPAINT,
            image=keep(store, picture(width, height)),
            mask=keep(store, np.full((height, width), 255, np.uint8)),
            num_inference_steps=2,
        )
        assert picture_of(store, await handled(queue, renderer, request)).shape == (height, width, 3)


@pytest.mark.parametrize("name", ["mini", "mini-inpaint"])
async def test_an_inpaint_whose_worker_dies_goes_on_and_ends_with_the_same_bytes(
    queue: JobQueue,
    store: FolderStore,
    start_engine: StartEngine,
    model: LoadedModel,
    inpainting_model: LoadedModel,
    name: str,
) -> None:
    request = painting(
        Task.INPAINT,
        model=name,
        image=keep(store, picture(100, 80)),
        mask=keep(store, mask_for(100, 80)),
        num_inference_steps=20,
        scheduler=Scheduler.EULER_ANCESTRAL,
        strength=0.9,
    )
    used = model if name == model.name else inpainting_model
    whole, again, engine = await handled_by_two(queue, store, start_engine, used, request)
    assert again.status is JobStatus.SUCCEEDED
    assert [image.sha256 for image in again.images] == [image.sha256 for image in whole.images]
    assert engine.counters.steps <= 18 - EVERY_CALLS


@pytest.mark.deep
@pytest.mark.timeout(3600)
async def test_two_hundred_random_jobs_keep_every_known_pixel(
    queue: JobQueue, renderer: Renderer, store: FolderStore
) -> None:
    rng = np.random.default_rng(6)
    for number in range(200):
        width, height, band_px = (int(length) for length in rng.integers(1, [300, 300, 20]))
        before, model = picture(width, height, number), ["mini", "mini-inpaint"][number % 2]
        common = {"model": model, "image": keep(store, before), "feather_px": band_px, "num_inference_steps": 1}
        left = top = 0
        if number % 4 < 2:
            white = rng.random((height, width)) < rng.random() ** 4
            white[rng.integers(height), rng.integers(width)] = True
            mask = np.where(white, rng.integers(125, 256), 0).astype(np.uint8)
            request = painting(Task.INPAINT, mask=keep(store, mask), **common)
        else:
            left, top, right = (int(length) for length in rng.integers(0, 90, 3))
            beyond = Outpaint(left=left, top=top, right=right, bottom=1)
            _, mask = extended(before, beyond)
            request = painting(Task.OUTPAINT, outpaint=beyond, **common)
        after = picture_of(store, await handled(queue, renderer, request))
        assert after.shape[:2] == mask.shape
        inner = np.s_[top : top + height, left : left + width]
        known = ~near(mask, band_px)[inner]
        assert np.array_equal(after[inner][known], before[known])


def message_of(job: Job) -> str:
    """Return what the field at fault is told."""
    assert job.error is not None
    return job.error.errors[0].message
