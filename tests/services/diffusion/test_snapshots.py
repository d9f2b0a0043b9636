"""A picture that goes on from a snapshot is the picture: the same bits, whatever the solver and the call."""

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from services.diffusion.consumer import Renderer
from services.diffusion.engine import Engine
from services.diffusion.loading import LoadedModel
from services.diffusion.requests import RenderRequest
from services.diffusion.snapshots import EVERY_CALLS, Snapshot, Unusable, fingerprint, pack, resume, take, unpack
from shared.artifacts import FolderStore
from shared.contracts import EventType, JobStatus, Lane, Scheduler, Stage
from shared.errors import StoreUnavailable
from shared.jobs import JobCanceled, JobQueue
from tests.services.diffusion.calls import call
from tests.services.diffusion.conftest import StartEngine
from tests.services.diffusion.jobs import eventually, history, job_request, submit
from tests.services.diffusion.pictures import png, render, request_for
from tests.services.diffusion.sources import source


def check_every_call(model: LoadedModel, kind: Scheduler, guidance: float, **more: Any) -> None:
    """Check that a picture can go on behind each of its calls, in a request of another process."""

    def fresh() -> RenderRequest:
        return request_for(model, "a boat", "rain", seed=9, steps=6, guidance=guidance, scheduler=kind, **more)

    mark = fingerprint(fresh().picture, model)
    with torch.inference_mode():
        whole = fresh()
        kept = []
        while whole.calls_done < whole.solver.calls:
            call(whole, model)
            kept.append(pack(take(whole), mark))
        assert len(kept) == whole.solver.calls
        for calls_done, data in enumerate(kept, start=1):
            again = fresh()
            resume(again, unpack(data, mark))
            assert again.calls_done == calls_done
            while again.calls_done < again.solver.calls:
                call(again, model)
            assert torch.equal(again.latents, whole.latents)


@pytest.mark.parametrize("kind", list(Scheduler))
def test_a_picture_goes_on_behind_each_call_with_every_scheduler(model: LoadedModel, kind: Scheduler) -> None:
    check_every_call(model, kind, guidance=5.0)


def test_a_picture_of_sdxl_without_guidance_goes_on(sdxl_model: LoadedModel) -> None:
    check_every_call(sdxl_model, Scheduler.UNIPC, guidance=1.0)


@pytest.mark.parametrize("kind", [Scheduler.EULER_ANCESTRAL, Scheduler.UNIPC])
@pytest.mark.parametrize("masked", [True, False])
def test_a_picture_that_starts_from_another_goes_on(model: LoadedModel, kind: Scheduler, masked: bool) -> None:
    given = source((64, 64), masked=masked, strength=0.7)
    check_every_call(model, kind, guidance=3.0, size=(64, 64), source=given)


def test_a_picture_of_an_inpainting_unet_goes_on(inpainting_model: LoadedModel) -> None:
    check_every_call(inpainting_model, Scheduler.DPMPP_2M_SDE, guidance=3.0, size=(64, 64), source=source((64, 64)))


def test_a_fingerprint_is_that_of_all_that_decides_the_picture(model: LoadedModel, sdxl_model: LoadedModel) -> None:
    picture = request_for(model).picture
    same = fingerprint(picture, model)
    assert fingerprint(replace(picture, lane=Lane.BATCH), model) == same
    others = {
        fingerprint(replace(picture, seed=1), model),
        fingerprint(replace(picture, scheduler=Scheduler.HEUN), model),
        fingerprint(replace(picture, guidance_scale=7.25), model),
        fingerprint(replace(picture, num_inference_steps=5), model),
        fingerprint(request_for(model, "a blue circle").picture, model),
        fingerprint(request_for(model, negative="a boat").picture, model),
        fingerprint(picture, sdxl_model),
        fingerprint(replace(picture, source=source((64, 64))), model),
        fingerprint(replace(picture, source=source((64, 64), seed=1)), model),
    }
    assert len(others | {same}) == 10


def snapshot_of(model: LoadedModel, mark: str = "mark") -> bytes:
    request = request_for(model, scheduler=Scheduler.DPMPP_2M)
    with torch.inference_mode():
        call(request, model)
        return pack(take(request), mark)


def test_bytes_that_are_no_snapshot_of_the_picture_are_refused(model: LoadedModel) -> None:
    data = snapshot_of(model)
    assert unpack(data, "mark").calls_done == 1
    for damaged in (b"", b"\x00" * 7, data[:20], data[:-1], data + b"x", b"\xff" * 8 + data[8:], data[:8] + b"{" * 90):
        with pytest.raises(Unusable):
            unpack(damaged, "mark")
    with pytest.raises(Unusable):
        unpack(data, "another picture")


def test_a_snapshot_of_another_shape_or_beyond_the_end_is_refused(model: LoadedModel) -> None:
    snapshot = unpack(snapshot_of(model), "mark")
    for request, taken in (
        (request_for(model, size=(64, 64)), snapshot),
        (request_for(model, steps=4, scheduler=Scheduler.EULER), replace(snapshot, calls_done=5)),
        (request_for(model), replace(snapshot, calls_done=0)),
    ):
        before = request.latents
        with pytest.raises(Unusable):
            resume(request, taken)
        assert (request.calls_done, request.latents) == (0, before)


async def test_the_engine_hands_out_a_snapshot_every_few_calls_and_at_the_end(
    engine: Engine, model: LoadedModel
) -> None:
    handle = engine.submit(request_for(model, steps=EVERY_CALLS * 2 + 2, scheduler=Scheduler.DDIM))
    taken = [event.calls_done async for event in handle.events() if isinstance(event, Snapshot)]
    assert taken[-1] == EVERY_CALLS * 2 + 2
    assert set(taken) <= {EVERY_CALLS, 2 * EVERY_CALLS, 2 * EVERY_CALLS + 2}


async def test_a_picture_with_all_its_calls_made_is_only_decoded(start_engine: StartEngine, model: LoadedModel) -> None:
    whole = request_for(model, steps=4)
    expected = png(await render(start_engine(model), whole))
    again = request_for(model, steps=4)
    resume(again, take(whole))
    engine = start_engine(model)
    assert png(await render(engine, again)) == expected
    assert (engine.counters.calls, engine.counters.side) == (0, 1)


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    (tmp_path / "artifacts").mkdir()
    return FolderStore(tmp_path / "artifacts", retention_s=3_600)


def states(store: FolderStore) -> list[str]:
    return sorted(path.name for path in (store.root / "states").glob("*"))


@pytest.fixture
def renderers() -> Iterator[list[Renderer]]:
    made: list[Renderer] = []
    yield made
    for renderer in made:
        renderer.close()


async def handled(queue: JobQueue, renderer: Renderer, worker: str) -> None:
    claim = await queue.claim(Stage.RENDER, worker=worker)
    assert claim is not None
    await renderer.handle(claim)


async def test_the_next_owner_goes_on_and_the_pictures_are_the_same_bytes(
    queue: JobQueue, store: FolderStore, start_engine: StartEngine, model: LoadedModel, renderers: list[Renderer]
) -> None:
    request = job_request(num_inference_steps=20, n=2, scheduler=Scheduler.DPMPP_2M_SDE)
    first = Renderer(start_engine(model), store)
    renderers.append(first)
    whole_id = await submit(queue, request)
    await handled(queue, first, "worker-1")
    whole = await queue.get(whole_id)
    assert states(store) == []

    job_id = await submit(queue, request)
    claim = await queue.claim(Stage.RENDER, worker="worker-1")
    assert claim is not None
    dying = asyncio.create_task(first.handle(claim))
    await eventually(lambda: len(states(store)) == 2)
    dying.cancel()
    await asyncio.gather(dying, return_exceptions=True)
    await claim.release()
    assert states(store) == [f"{job_id}.0", f"{job_id}.1"]

    engine = start_engine(model)
    second = Renderer(engine, store)
    renderers.append(second)
    await handled(queue, second, "worker-2")
    again = await queue.get(job_id)
    assert again.status is JobStatus.SUCCEEDED
    assert [image.sha256 for image in again.images] == [image.sha256 for image in whole.images]
    assert engine.counters.steps <= 2 * (20 - EVERY_CALLS)
    told = [event.data for event in await history(queue, job_id) if event.type is EventType.RENDER_PROGRESS]
    resumed = [data["step"] for data in told if data.get("resumed")]
    assert len(resumed) == 2
    assert min(resumed) >= EVERY_CALLS
    assert states(store) == []


@pytest.mark.parametrize("data", [b"no snapshot", b""])
async def test_a_state_that_is_of_no_use_costs_nothing_but_the_steps(
    queue: JobQueue,
    store: FolderStore,
    engine: Engine,
    renderers: list[Renderer],
    data: bytes,
) -> None:
    renderer = Renderer(engine, store)
    renderers.append(renderer)
    job_id = await submit(queue, job_request(num_inference_steps=3))
    store.save_state(f"{job_id}.0", data)
    await handled(queue, renderer, "worker-1")
    assert (await queue.get(job_id)).status is JobStatus.SUCCEEDED
    assert engine.counters.steps == 3


async def test_a_canceled_job_leaves_no_state(
    queue: JobQueue, store: FolderStore, engine: Engine, renderers: list[Renderer]
) -> None:
    renderer = Renderer(engine, store)
    renderers.append(renderer)
    job_id = await submit(queue, job_request(num_inference_steps=150))
    claim = await queue.claim(Stage.RENDER, worker="worker-1")
    assert claim is not None
    handling = asyncio.create_task(renderer.handle(claim))
    await eventually(lambda: len(states(store)) == 1)
    await queue.cancel(job_id)
    claim.lose(JobCanceled("canceled"))  # as the consumer is told
    await asyncio.gather(handling, return_exceptions=True)
    assert states(store) == []


async def test_a_store_that_cannot_keep_states_stops_no_picture(
    queue: JobQueue, store: FolderStore, engine: Engine, renderers: list[Renderer], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise StoreUnavailable("The disk is full.", retry_after_s=1)

    monkeypatch.setattr(store, "save_state", full)
    renderer = Renderer(engine, store)
    renderers.append(renderer)
    job_id = await submit(queue, job_request(num_inference_steps=12))
    await handled(queue, renderer, "worker-1")
    assert (await queue.get(job_id)).status is JobStatus.SUCCEEDED
