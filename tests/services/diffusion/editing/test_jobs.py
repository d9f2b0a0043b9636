"""Edits through the real queue and store: a picture, its mask beside it, and a record that makes it again."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from services.diffusion.consumer import Renderer
from services.diffusion.inputs import fitted
from services.diffusion.loading import LoadedModel
from services.diffusion.sources import Pixels
from shared.artifacts import FolderStore
from shared.contracts import (
    ArtifactName,
    GenerationPrompt,
    GenerationRequest,
    JobStatus,
    PromptMode,
    Scheduler,
    Task,
)
from shared.jobs import DEFAULT_TENANT, JobQueue
from shared.media import decode_image, read_text
from shared.settings import QueueSettings
from tests.services.diffusion.conftest import StartEngine
from tests.services.diffusion.jobs import handled, handled_by_two, job_request
from tests.services.diffusion.sources import keep, oval, picture

STEPS = 3
WRITTEN = GenerationPrompt(text="a blue square at night", source="mllm", source_caption="a red circle (small)")


@pytest.fixture
def queue_settings() -> QueueSettings:
    """Return settings whose leases last a whole test: nothing renews them here."""
    return QueueSettings(lease_ms=300_000)


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    """Return an empty artifact store."""
    (tmp_path / "artifacts").mkdir()
    return FolderStore(tmp_path / "artifacts", retention_s=3_600)


@pytest.fixture
def renderer(start_engine: StartEngine, model: LoadedModel, store: FolderStore) -> Iterator[Renderer]:
    """Yield a renderer."""
    renderer = Renderer(start_engine(model), store)
    yield renderer
    renderer.close()


def edit(image: str, **changes: Any) -> GenerationRequest:
    """Return a request for an edit, as the gateway fills it in."""
    return job_request(
        **{
            "task": Task.EDIT,
            "image": image,
            "instruction": "at night",
            "prompt_mode": PromptMode.REFINE,
            "size": "64x64",
            "num_inference_steps": STEPS,
            "scheduler": Scheduler.DPMPP_2M_SDE,
            "edit_strength": 0.75,
            "source_guidance_scale": 3.5,
        }
        | changes
    )


def pixels_of(store: FolderStore, image_id: str) -> Pixels:
    """Return a kept picture."""
    return decode_image(store.get(image_id, tenant=DEFAULT_TENANT)[0])


async def test_an_edit_gives_a_picture_and_its_mask_and_says_how_it_was_made(
    queue: JobQueue, renderer: Renderer, store: FolderStore
) -> None:
    image = keep(store, picture(100, 64))
    job = await handled(queue, renderer, edit(image, n=2, debug=True), WRITTEN)
    assert job.status is JobStatus.SUCCEEDED, job.error
    first, second = job.images
    assert first.id != second.id
    mask, given = first.artifacts
    assert (mask.name, given.name) == (ArtifactName.MASK, ArtifactName.INPUT)
    assert (mask.width, mask.height, mask.url) == (64, 64, f"/v1/images/{mask.id}")
    white = pixels_of(store, mask.id)
    assert set(np.unique(white)) <= {0, 255}
    assert np.array_equal(pixels_of(store, given.id), fitted(picture(100, 64), (64, 64)))
    parameters = json.loads(read_text(store.get(first.id, tenant=DEFAULT_TENANT)[0])["llmga"])
    told = {
        "task": "edit",
        "image": image,
        "prompt": "a blue square at night",
        "source_caption": "a red circle (small)",
        "source_truncated_tokens": 0,
        "edit_strength": 0.75,
        "source_guidance_scale": 3.5,
        "keep_unmasked": True,
        "scheduler": "dpmpp_2m_sde",
        "mask_share": round(float((white > 0).mean()), 4),
    }
    assert told.items() <= parameters.items()
    assert job.progress is not None
    assert job.progress.step == job.progress.total_steps == 2 * (10 + 2 * STEPS)


async def test_the_client_s_own_mask_is_cut_as_its_picture_is(
    queue: JobQueue, renderer: Renderer, store: FolderStore
) -> None:
    image, mask = keep(store, picture(100, 64)), oval(100, 64).astype(np.uint8) * 255
    job = await handled(queue, renderer, edit(image, mask=keep(store, mask)), WRITTEN)
    (artifact,) = job.images[0].artifacts
    white = pixels_of(store, artifact.id)[..., 0]
    cut = mask[:, 18:82]
    assert np.array_equal(white[::8, ::8] > 0, cut.reshape(8, 8, 8, 8).any(axis=(1, 3)))
    edge = np.zeros((64, 100), np.uint8)
    edge[:, :10] = 255
    refused = await handled(queue, renderer, edit(image, mask=keep(store, edge)), WRITTEN)
    assert refused.error is not None
    assert [(fault.field, fault.code) for fault in refused.error.errors] == [("mask", "nothing_to_paint")]


async def test_what_a_model_cannot_edit_is_refused(
    queue: JobQueue, start_engine: StartEngine, inpainting_model: LoadedModel, store: FolderStore
) -> None:
    renderer = Renderer(start_engine(inpainting_model), store)
    job = await handled(queue, renderer, edit(keep(store, picture(64, 64)), model=inpainting_model.name), WRITTEN)
    renderer.close()
    assert job.error is not None
    assert [(fault.field, fault.code) for fault in job.error.errors] == [("task", "not_offered")]


async def test_an_edit_whose_worker_dies_goes_on_and_ends_with_the_same_bytes(
    queue: JobQueue, store: FolderStore, start_engine: StartEngine, model: LoadedModel
) -> None:
    request = edit(keep(store, picture(64, 64)), num_inference_steps=8)
    whole, ended, engine = await handled_by_two(queue, store, start_engine, model, request, WRITTEN)
    assert ended.images == whole.images
    assert engine.counters.steps < 5 + 2 * 8
