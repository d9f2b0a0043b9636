"""A picture that goes on from a snapshot is the picture: the same bits, whatever the solver and the call."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import pytest
import torch

from services.diffusion.consumer import Renderer
from services.diffusion.engine import Engine
from services.diffusion.handles import Finished
from services.diffusion.loading import LoadedModel
from services.diffusion.requests import RenderRequest
from services.diffusion.snapshots import (
    AT_RISK_CALLS,
    EVERY_CALLS,
    Snapshot,
    Unusable,
    fingerprint,
    pack,
    resume,
    take,
    unpack,
)
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


class Drawer:
    """Takes snapshots, and says that they are kept when it is told to."""

    def __init__(self, *, is_open: bool) -> None:
        self.taken: list[int] = []
        self.is_open = is_open
        self._unsaid: SimpleQueue[Callable[[], None]] = SimpleQueue()

    def keep(self, snapshot: Snapshot, kept: Callable[[], None]) -> None:
        self.taken.append(snapshot.calls_done)
        self._unsaid.put(kept)
        if self.is_open:
            self.say()

    def say(self) -> None:
        """Say that all snapshots so far are kept."""
        with suppress(Empty):
            while True:
                self._unsaid.get_nowait()()


async def test_the_engine_hands_out_a_snapshot_every_few_calls_and_at_the_end(
    engine: Engine, model: LoadedModel
) -> None:
    drawer = Drawer(is_open=True)
    handle = engine.submit(request_for(model, steps=EVERY_CALLS * 2 + 2, scheduler=Scheduler.DDIM), drawer)
    assert isinstance([event async for event in handle.events()][-1], Finished)
    assert drawer.taken == [EVERY_CALLS, 2 * EVERY_CALLS, 2 * EVERY_CALLS + 2]


async def test_a_picture_waits_for_its_snapshot_to_be_kept_and_others_do_not(
    start_engine: StartEngine, model: LoadedModel
) -> None:
    engine = start_engine(model)
    drawers = [Drawer(is_open=False) for _ in range(2)]
    handles = [engine.submit(request_for(model, steps=20, scheduler=Scheduler.DDIM), drawer) for drawer in drawers]
    stand = 2 * AT_RISK_CALLS
    await eventually(lambda: engine.counters.steps == stand)
    beside = request_for(model, steps=6, scheduler=Scheduler.DDIM)
    await render(engine, beside)
    stand += 6
    calls = engine.counters.calls
    await asyncio.sleep(0.2)
    assert (engine.counters.calls, engine.counters.steps) == (calls, stand)
    assert [drawer.taken for drawer in drawers] == [[EVERY_CALLS]] * 2

    handles[1].cancel()
    assert not [event async for event in handles[1].events() if isinstance(event, Finished)]
    drawers[0].say()
    stand += EVERY_CALLS
    await eventually(lambda: engine.counters.steps == stand)
    assert drawers[0].taken == [EVERY_CALLS, 2 * EVERY_CALLS]
    drawers[0].is_open = True
    drawers[0].say()
    assert [event async for event in handles[0].events() if isinstance(event, Finished)]
    assert engine.counters.steps == AT_RISK_CALLS + 6 + 20


async def test_a_slow_disk_holds_its_pictures_and_a_broken_one_none(
    queue: JobQueue,
    store: FolderStore,
    engine: Engine,
    renderers: list[Renderer],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    goes_on = threading.Event()

    def slow(name: str, data: bytes) -> None:
        assert goes_on.wait(60)
        raise StoreUnavailable("The disk is full.", retry_after_s=1)

    monkeypatch.setattr(store, "save_state", slow)
    renderer = Renderer(engine, store)
    renderers.append(renderer)
    job_id = await submit(queue, job_request(num_inference_steps=20, scheduler=Scheduler.DDIM))
    rendering = asyncio.create_task(handled(queue, renderer, "worker-1"))
    await eventually(lambda: engine.counters.steps == AT_RISK_CALLS)
    await asyncio.sleep(0.1)
    assert engine.counters.steps == AT_RISK_CALLS
    goes_on.set()
    await rendering
    assert (await queue.get(job_id)).status is JobStatus.SUCCEEDED


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
