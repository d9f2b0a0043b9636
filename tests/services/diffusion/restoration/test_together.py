"""Pictures of several jobs in one pass of the network, through the real queue and a real engine."""

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest

from services.diffusion.engine import Engine
from services.diffusion.loading import LoadedModel
from services.diffusion.restoration.restorer import MAX_BATCH_PX, Painting, Pixels, Restorer
from services.diffusion.restoration.together import Restorations
from shared.contracts import Lane, Stage
from shared.errors import JobError
from shared.jobs import Claim, JobQueue, LeaseLost
from tests.services.diffusion.conftest import StartEngine
from tests.services.diffusion.jobs import job_request, submit
from tests.services.diffusion.restoration.networks import small_network
from tests.services.diffusion.restoration.test_restorer import finished, painting


class Counting(Restorer):
    """Remembers which seeds shared a pass; fails where a seed is among `fails`, and at batches if told."""

    def __init__(self, *, fails: Sequence[int] = (), fails_together: bool = False) -> None:
        super().__init__(small_network())
        self.passes: list[list[int]] = []
        self._fails, self._fails_together = fails, fails_together

    def restore_batch(self, paintings: Sequence[Painting]) -> list[Pixels]:
        self.passes.append([picture.seed for picture in paintings])
        if any(picture.seed in self._fails for picture in paintings) or (self._fails_together and len(paintings) > 1):
            raise RuntimeError("no kernel for this")
        return super().restore_batch(paintings)


async def claimed(queue: JobQueue, **wishes: Any) -> Claim:
    await submit(queue, job_request(**wishes))
    claim = await queue.claim(Stage.RENDER, worker="worker-1")
    assert claim is not None
    return claim


@asynccontextmanager
async def held(engine: Engine, model: LoadedModel) -> AsyncIterator[None]:
    """Keep the device busy, so that what comes meanwhile has to wait."""
    gate = threading.Event()
    busy = engine.run_aside(lambda: gate.wait(60), model.device, lane=Lane.INTERACTIVE)
    try:
        yield
        await asyncio.sleep(0.05)  # for the tasks to get into their queue
    finally:
        gate.set()
    await asyncio.wrap_future(busy)


PICTURES = [painting(40, 33, seed=seed) for seed in range(3)] + [painting(64, 64, seed=seed) for seed in (3, 4)]


async def all_restored(
    queue: JobQueue, engine: Engine, model: LoadedModel, restorer: Restorer, wishes: Sequence[dict[str, Any]]
) -> list[Any]:
    restorations = Restorations(engine, restorer)
    claims = [await claimed(queue, **wish) for wish in wishes]
    async with held(engine, model):
        tasks = [
            asyncio.create_task(restorations.restore(claim, picture))
            for claim, picture in zip(claims, PICTURES, strict=True)
        ]
        await asyncio.sleep(0)
    return await asyncio.gather(*tasks, return_exceptions=True)


async def test_pictures_of_one_size_share_a_pass_and_come_back_as_if_alone(
    queue: JobQueue, start_engine: StartEngine, model: LoadedModel
) -> None:
    restorer = Counting()
    outcomes = await all_restored(queue, start_engine(model), model, restorer, [{"deterministic": False}] * 5)
    assert sorted(map(sorted, restorer.passes)) == [[0, 1, 2], [3, 4]]
    for picture, outcome in zip(PICTURES, outcomes, strict=True):
        assert np.abs(outcome.astype(int) - finished(Restorer(small_network()), picture)).max() <= 1


async def test_deterministic_pictures_and_those_of_other_lanes_go_alone(
    queue: JobQueue, start_engine: StartEngine, model: LoadedModel
) -> None:
    restorer = Counting()
    exact, free = {"deterministic": True}, {"deterministic": False}
    wishes: list[dict[str, Any]] = [exact, free, {"deterministic": False, "lane": Lane.BATCH}, exact, free]
    outcomes = await all_restored(queue, start_engine(model), model, restorer, wishes)
    assert sorted(restorer.passes) == [[0], [1], [2], [3], [4]]
    for place in (0, 3):
        assert np.array_equal(outcomes[place], finished(Restorer(small_network()), PICTURES[place]))


@pytest.mark.parametrize(("fails", "together"), [([1], False), ([], True)])
async def test_what_fails_together_has_a_turn_of_its_own(
    queue: JobQueue, start_engine: StartEngine, model: LoadedModel, fails: list[int], together: bool
) -> None:
    restorer = Counting(fails=fails, fails_together=together)
    outcomes = await all_restored(queue, start_engine(model), model, restorer, [{"deterministic": False}] * 5)
    for picture, outcome in zip(PICTURES, outcomes, strict=True):
        if picture.seed in fails:
            assert isinstance(outcome, JobError)
        else:
            assert np.abs(outcome.astype(int) - finished(Restorer(small_network()), picture)).max() <= 1


async def test_a_lost_job_is_not_restored_with_others(
    queue: JobQueue, start_engine: StartEngine, model: LoadedModel
) -> None:
    engine, restorer = start_engine(model), Counting()
    restorations = Restorations(engine, restorer)
    claims = [await claimed(queue, deterministic=False) for _ in range(3)]
    async with held(engine, model):
        tasks = [
            asyncio.create_task(restorations.restore(claim, picture))
            for claim, picture in zip(claims, PICTURES[:3], strict=True)
        ]
        await asyncio.sleep(0.05)
        claims[1].lose(LeaseLost("taken away"))
        with pytest.raises(LeaseLost):
            await tasks[1]
    await asyncio.gather(tasks[0], tasks[2])
    assert restorer.passes == [[0, 2]]


async def test_a_pass_has_a_bounded_number_of_pixels(
    queue: JobQueue, start_engine: StartEngine, model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.diffusion.restoration.together.MAX_BATCH_PX", 2 * 40 * 33)
    assert MAX_BATCH_PX > 5 * 64 * 64
    restorer = Counting()
    await all_restored(queue, start_engine(model), model, restorer, [{"deterministic": False}] * 5)
    assert sorted(map(len, restorer.passes)) == [1, 1, 1, 2]
