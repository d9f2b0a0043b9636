"""Pictures that were painted in part, finished by a small random network, through the real queue and store."""

import asyncio
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from services.diffusion.canvas import Canvas
from services.diffusion.consumer import Renderer
from services.diffusion.engine import Engine, EngineClosed
from services.diffusion.finishing import SECOND_PASS_FROM, Finisher, mixed, painting_of, scored
from services.diffusion.inputs import Inputs
from services.diffusion.loading import LoadedModel
from services.diffusion.restoration.checkpoints import save
from services.diffusion.restoration.config import Scale
from services.diffusion.restoration.restorer import Painting, Restorer
from services.diffusion.service import Unfit, Worker
from services.diffusion.sources import Pixels
from shared.artifacts import FolderStore
from shared.contracts import (
    ArtifactName,
    EventType,
    GenerationRequest,
    Job,
    JobStatus,
    Lane,
    Outpaint,
    Restore,
    Scheduler,
    Stage,
    Task,
)
from shared.errors import InternalError
from shared.jobs import DEFAULT_TENANT, JobQueue, LeaseLost
from shared.media import PAINTED_FROM, decode_image
from shared.settings import DiffusionSettings, RedisSettings, Settings
from tests.services.diffusion.conftest import StartEngine
from tests.services.diffusion.jobs import ended, eventually, handled, history, job_request, submit, until
from tests.services.diffusion.pictures import render, request_for
from tests.services.diffusion.restoration.networks import small_network
from tests.services.diffusion.sources import keep, near, oval, picture

FEATHER_PX = 6
WIDTH, HEIGHT = 101, 83  # multiples of no scale
BEFORE = picture(WIDTH, HEIGHT)
MASK = oval(WIDTH, HEIGHT).astype(np.uint8) * 255
CANVAS = Canvas(BEFORE, MASK, (64, 64), FEATHER_PX)

StartRenderer = Callable[..., Renderer]


class Gated(Restorer):
    """A restorer that waits in the middle of its work."""

    gate: threading.Event
    reached: threading.Event

    def restore_batch(self, paintings: Sequence[Painting]) -> list[Pixels]:
        self.reached.set()
        assert self.gate.wait(60)
        return super().restore_batch(paintings)


def gated() -> Gated:
    restorer = Gated(small_network())
    restorer.gate, restorer.reached = threading.Event(), threading.Event()
    return restorer


class Broken(Restorer):
    """A restorer whose network fails."""

    def restore_batch(self, paintings: Sequence[Painting]) -> list[Pixels]:
        raise RuntimeError("a matrix of another shape")


def restored(restorer: Restorer, placed: Pixels, band_px: int, seed: int) -> Pixels:
    """Return what the service makes of a rendered picture on the canvas with a network."""
    (finished,) = restorer.restore_batch([painting_of(CANVAS, placed, band_px, seed, restorer.config.scale)])
    return mixed(CANVAS, finished, band_px)


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    (tmp_path / "artifacts").mkdir()
    return FolderStore(tmp_path / "artifacts", retention_s=3_600)


@pytest.fixture
def start_renderer(start_engine: StartEngine, model: LoadedModel, store: FolderStore) -> Iterator[StartRenderer]:
    """Yield a function that starts a renderer with a network, or without."""
    renderers: list[Renderer] = []

    def start(restorer: Restorer | None) -> Renderer:
        renderers.append(Renderer(start_engine(model), store, restorer=restorer))
        return renderers[-1]

    yield start
    for renderer in renderers:
        renderer.close()


def inpaint(store: FolderStore, **changes: Any) -> GenerationRequest:
    values: dict[str, Any] = {
        "task": Task.INPAINT,
        "size": "64x64",
        "feather_px": FEATHER_PX,
        "num_inference_steps": 2,
        "scheduler": Scheduler.DDIM,
        "image": keep(store, BEFORE),
    }
    values |= {"mask": keep(store, MASK)} if changes.get("task", Task.INPAINT) is Task.INPAINT else {}
    return job_request(**(values | changes))


def result_of(store: FolderStore, job: Job, index: int = 0) -> tuple[Pixels, dict[str, Any]]:
    """Return a finished picture and its record."""
    assert job.status is JobStatus.SUCCEEDED, job.error
    data, stored = store.get(job.images[index].id, tenant=DEFAULT_TENANT)
    return decode_image(data), dict(stored.metadata)


async def rendered(start_engine: StartEngine, model: LoadedModel) -> Pixels:
    """Return the region as the engine renders it."""
    request = request_for(
        model,
        "a red circle at night",
        encoding=job_request().prompt_encoding,
        size=(64, 64),
        seed=7,
        steps=2,
        scheduler=Scheduler.DDIM,
        source=CANVAS.source(),
    )
    return await render(start_engine(model), request)


@pytest.mark.parametrize("scale", [1, 2, 4])
async def test_a_painted_part_becomes_the_networks_and_nothing_else_changes(
    queue: JobQueue,
    start_renderer: StartRenderer,
    start_engine: StartEngine,
    model: LoadedModel,
    store: FolderStore,
    tmp_path: Path,
    scale: Scale,
) -> None:
    save(small_network(scale), tmp_path / "network")
    restorer = Restorer.load(tmp_path / "network")
    job = await handled(queue, start_renderer(restorer), inpaint(store, restore=Restore.ON))
    after, record = result_of(store, job)
    raw = await rendered(start_engine, model)
    assert np.array_equal(after, restored(restorer, CANVAS.placed(raw), 0, 7))
    assert np.array_equal(after[MASK == 0], BEFORE[MASK == 0])
    pasted = CANVAS.mixed(CANVAS.placed(raw), 0)
    assert (after != pasted)[MASK > 0].mean() > 0.5
    assert (record["restoration"], record["band_px"]) == ("diffrir", 0)
    assert record["restoration_sha256"] == restorer.sha256
    scores = {"before": scored(CANVAS, pasted), "after": scored(CANVAS, after)}
    for name, score in scores.items():
        assert score is not None
        assert record["seam_score"][name]["total"] == round(score.total, 2)
        assert record["seam_score"][name]["color"] == round(score.color, 2)


async def test_restoration_is_announced_before_the_picture(
    queue: JobQueue, start_renderer: StartRenderer, store: FolderStore
) -> None:
    job = await handled(queue, start_renderer(Restorer(small_network())), inpaint(store))
    told = [(event.type, event.data.get("index")) for event in await history(queue, job.id)]
    started = told.index((EventType.RESTORE_STARTED, 0))
    assert EventType.IMAGE_COMPLETED in [kind for kind, _ in told[started:]]


async def test_auto_takes_the_pass_with_the_lower_seam_score_and_stays_within_the_band(
    queue: JobQueue, start_renderer: StartRenderer, start_engine: StartEngine, model: LoadedModel, store: FolderStore
) -> None:
    raw = CANVAS.placed(await rendered(start_engine, model))
    bands: set[int] = set()
    for seed in range(4):
        restorer = Restorer(small_network(seed=seed))
        after, record = result_of(store, await handled(queue, start_renderer(restorer), inpaint(store)))
        first, second = (restored(restorer, raw, band_px, 7) for band_px in (0, FEATHER_PX))
        once, twice = scored(CANVAS, first), scored(CANVAS, second)
        assert once is not None
        assert twice is not None
        assert once.total >= SECOND_PASS_FROM, "random networks leave seams"
        assert np.array_equal(after, second if twice.total < once.total else first)
        known = ~near(MASK, FEATHER_PX)
        assert np.array_equal(after[known], BEFORE[known])
        bands.add(record["band_px"])
    assert FEATHER_PX in bands


async def test_without_a_network_auto_blends_and_on_is_refused(
    queue: JobQueue, start_renderer: StartRenderer, start_engine: StartEngine, model: LoadedModel, store: FolderStore
) -> None:
    renderer = start_renderer(None)
    after, record = result_of(store, await handled(queue, renderer, inpaint(store)))
    refused = await handled(queue, renderer, inpaint(store, restore=Restore.ON))
    raw = await rendered(start_engine, model)
    assert np.array_equal(after, CANVAS.blended(raw))
    assert (record["restoration"], record["band_px"]) == ("blend", FEATHER_PX)
    assert record["seam_score"]["after"]["total"] < record["seam_score"]["before"]["total"]
    assert refused.error is not None
    assert [(problem.field, problem.code) for problem in refused.error.errors] == [("restore", "not_offered")]
    assert refused.attempts == 1


async def test_off_blends_although_there_is_a_network_and_a_mask_without_border_has_no_score(
    queue: JobQueue, start_renderer: StartRenderer, store: FolderStore
) -> None:
    renderer = start_renderer(Restorer(small_network()))
    _, record = result_of(store, await handled(queue, renderer, inpaint(store, restore=Restore.OFF)))
    assert record["restoration"] == "off"
    white = keep(store, np.full((HEIGHT, WIDTH), 255, np.uint8))
    _, record = result_of(store, await handled(queue, renderer, inpaint(store, mask=white)))
    assert record["restoration"] == "diffrir"
    assert record["seam_score"] == {"before": None, "after": None}


async def test_pictures_on_the_way_are_kept_where_they_are_asked_for_and_change_nothing(
    queue: JobQueue, start_renderer: StartRenderer, store: FolderStore
) -> None:
    renderer = start_renderer(Restorer(small_network()))
    (plain,) = (await handled(queue, renderer, inpaint(store))).images
    (debugged,) = (await handled(queue, renderer, inpaint(store, debug=True))).images
    assert plain.artifacts == []
    assert plain.id == debugged.id
    kept = {
        artifact.name: decode_image(store.get(artifact.id, tenant=DEFAULT_TENANT)[0]) for artifact in debugged.artifacts
    }
    assert set(kept) == {ArtifactName.MASK, ArtifactName.MASKED_INPUT, ArtifactName.UNRESTORED}
    is_painted = MASK >= PAINTED_FROM
    assert np.array_equal(kept[ArtifactName.MASK][..., 0], MASK)
    assert np.array_equal(kept[ArtifactName.MASKED_INPUT], np.where(is_painted[..., None], 0, BEFORE))
    assert np.array_equal(kept[ArtifactName.UNRESTORED][MASK == 0], BEFORE[MASK == 0])
    assert not np.array_equal(kept[ArtifactName.UNRESTORED][is_painted], BEFORE[is_painted])


async def test_an_extension_is_restored_and_the_old_picture_keeps_its_bits(
    queue: JobQueue, start_renderer: StartRenderer, store: FolderStore
) -> None:
    request = inpaint(store, task=Task.OUTPAINT, outpaint=Outpaint(left=31, bottom=20), restore=Restore.ON)
    after, record = result_of(store, await handled(queue, start_renderer(Restorer(small_network())), request))
    assert after.shape == (HEIGHT + 20, WIDTH + 31, 3)
    assert np.array_equal(after[:HEIGHT, 31:], BEFORE)
    assert record["restoration"] == "diffrir"


async def test_a_restored_picture_is_the_same_whoever_is_beside_it_and_wherever_its_worker_dies(
    queue: JobQueue, start_renderer: StartRenderer, store: FolderStore
) -> None:
    both = await handled(queue, start_renderer(Restorer(small_network())), inpaint(store, n=2, num_inference_steps=12))
    slow = gated()
    alone = inpaint(store, seed=8, num_inference_steps=12)
    job_id = await submit(queue, alone)
    claim = await queue.claim(Stage.RENDER, worker="worker-1")
    assert claim is not None
    dying = asyncio.create_task(start_renderer(slow).handle(claim))
    assert await asyncio.to_thread(slow.reached.wait, 60)
    dying.cancel()
    await asyncio.gather(dying, return_exceptions=True)
    slow.gate.set()
    await claim.release()
    claim = await queue.claim(Stage.RENDER, worker="worker-2")
    assert claim is not None
    await start_renderer(Restorer(small_network())).handle(claim)
    again = await ended(queue, job_id)
    assert any(event.data.get("resumed") for event in await history(queue, job_id))
    assert again.images[0].sha256 == both.images[1].sha256 != both.images[0].sha256


async def test_a_job_that_is_lost_while_it_waits_for_the_network_leaves_at_once(
    queue: JobQueue, start_engine: StartEngine, model: LoadedModel, store: FolderStore
) -> None:
    engine, gate = start_engine(model), threading.Event()
    busy = engine.run_aside(lambda: gate.wait(60), model.device, lane=Lane.INTERACTIVE)
    job_id = await submit(queue, inpaint(store))
    claim = await queue.claim(Stage.RENDER, worker="worker-1")
    assert claim is not None
    restorer = gated()
    with ThreadPoolExecutor(1) as files:
        finishing = Finisher(engine, files, restorer).finish(claim, Inputs(None, CANVAS), 0, 7, picture(64, 64))
        waiting = asyncio.create_task(finishing)
        await until(queue, job_id, lambda event: event.type is EventType.RESTORE_STARTED)
        claim.lose(LeaseLost("taken away"))
        with pytest.raises(LeaseLost):
            await waiting
    gate.set()
    assert await asyncio.wrap_future(busy)
    assert await asyncio.wrap_future(engine.run_aside(lambda: 5, model.device, lane=Lane.BATCH)) == 5
    assert not restorer.reached.is_set()


def is_closed(engine: Engine) -> bool:
    """Return whether an engine takes no more errands."""
    try:
        engine.run_aside(lambda: None, torch.device("cpu"), lane=Lane.BATCH)
    except EngineClosed:
        return True
    return False


async def test_an_errand_that_a_closing_engine_never_ran_is_told(start_engine: StartEngine, model: LoadedModel) -> None:
    engine, gate = start_engine(model), threading.Event()
    engine.run_aside(lambda: gate.wait(60), model.device, lane=Lane.INTERACTIVE)
    late = engine.run_aside(lambda: 5, model.device, lane=Lane.INTERACTIVE)
    closing = asyncio.create_task(asyncio.to_thread(engine.close))
    await eventually(lambda: is_closed(engine))
    gate.set()
    await closing
    assert isinstance(late.exception(60), InternalError)


async def test_a_network_that_fails_fails_its_job_alone(
    queue: JobQueue, start_renderer: StartRenderer, store: FolderStore
) -> None:
    renderer = start_renderer(Broken(small_network()))
    failed = await handled(queue, renderer, inpaint(store))
    assert failed.error is not None
    assert failed.error.code == "render_failed"
    assert "matrix" not in json.dumps(failed.error.model_dump(mode="json"))
    assert (await handled(queue, renderer, inpaint(store, restore=Restore.OFF))).status is JobStatus.SUCCEEDED


async def test_a_worker_says_that_it_restores_and_does_not_start_with_a_network_that_it_cannot_load(
    redis_settings: RedisSettings, queue: JobQueue, mini: Path, tmp_path: Path
) -> None:
    def worker(restoration: Path) -> Worker:
        diffusion = DiffusionSettings(
            models={"mini": str(mini)}, restoration=str(restoration), metrics_port=0, max_rows=4
        )
        return Worker(Settings(home=tmp_path, device="cpu", redis=redis_settings, diffusion=diffusion))

    (tmp_path / "empty").mkdir()
    unfit = worker(tmp_path / "empty")
    with pytest.raises(Unfit, match=r"LLMGA_DIFFUSION__RESTORATION: .*config\.json is missing"):
        await unfit.start()
    await unfit.close()
    save(small_network(), tmp_path / "network")
    fit = worker(tmp_path / "network")
    await fit.start()
    stop = asyncio.Event()
    working = asyncio.create_task(fit.work(stop))
    announced = [model for worker in await queue.workers() for model in worker.models]
    while not announced:
        await asyncio.sleep(0.05)
        announced = [model for worker in await queue.workers() for model in worker.models]
    stop.set()
    await working
    await fit.close()
    assert [model.restores for model in announced] == [True]
