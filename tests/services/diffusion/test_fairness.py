"""Who waits how long, seen in the UNet's calls: rare sizes, and batch work beside interactive work."""

import asyncio
from itertools import pairwise

import numpy as np
import torch

from services.diffusion.batching import PATIENCE_CALLS
from services.diffusion.engine import Engine
from services.diffusion.handles import Handle
from services.diffusion.loading import LoadedModel
from shared.contracts import Lane, Scheduler
from tests.services.diffusion.conftest import MAX_ROWS, StartEngine
from tests.services.diffusion.instruments import held, watched
from tests.services.diffusion.pictures import request_for, results

COMMON, RARE = (64, 64), (64, 72)


class Stage:
    """An engine that makes no call until all requests are in it, and the height of each call's latents."""

    def __init__(self, start_engine: StartEngine, model: LoadedModel) -> None:
        self.heights: list[int] = []
        gated, self.unet = held(model)
        self.model = watched(gated, self._look)
        self.engine: Engine = start_engine(self.model)
        self.handles: list[Handle] = []

    def _look(self, sample: torch.Tensor, _: torch.Tensor) -> None:
        self.heights.append(sample.shape[2])

    def submit(self, size: tuple[int, int], steps: int, lane: Lane = Lane.INTERACTIVE) -> None:
        request = request_for(
            self.model, size=size, seed=len(self.handles), steps=steps, scheduler=Scheduler.DDIM, lane=lane
        )
        self.handles.append(self.engine.submit(request))

    async def hold(self) -> None:
        """Return when the first call is under way."""
        await asyncio.to_thread(self.unet.wait_for_call)

    async def run(self) -> list[int]:
        """Make all pictures; return the numbers of the calls that were of the rare size."""
        self.unet.allow(10_000)
        assert all(isinstance(done, np.ndarray) for done in await results(self.handles))
        return [number for number, height in enumerate(self.heights) if height == RARE[1] // 8]


async def test_a_rare_size_waits_for_one_round_at_most(start_engine: StartEngine, model: LoadedModel) -> None:
    stage = Stage(start_engine, model)
    for _ in range(20):
        stage.submit(COMMON, steps=6)
    await stage.hold()
    for _ in range(2):
        stage.submit(RARE, steps=4)
    rare = await stage.run()
    # Stated in `batching`: each size's rows over those of a call, rounded up; here 40 of the one and 4 of the other.
    per_round = -(-40 // MAX_ROWS) + 1
    assert len(rare) == 4, "both rare pictures share their calls"
    assert rare[0] <= per_round
    assert all(after - before <= per_round for before, after in pairwise(rare))


async def test_batch_work_goes_on_beside_interactive_work_that_fills_every_call(
    start_engine: StartEngine, model: LoadedModel
) -> None:
    stage = Stage(start_engine, model)
    for _ in range(MAX_ROWS // 2):
        stage.submit(COMMON, steps=2 * (PATIENCE_CALLS + 4))
    await stage.hold()
    stage.submit(RARE, steps=2, lane=Lane.BATCH)
    first, second = await stage.run()
    assert PATIENCE_CALLS < first <= PATIENCE_CALLS + 2, "interactive work went first, for as long as is stated"
    assert second - first <= PATIENCE_CALLS + 1
    assert second < stage.engine.counters.calls - 1
