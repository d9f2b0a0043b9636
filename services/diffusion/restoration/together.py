"""Pictures that wait for the restoration network, and which of them share a forward pass.

Each has an errand of its own on the device thread. The first of a size whose turn comes takes the others along, and
their errands find themselves done. Only pictures that need not be deterministic share: a batch rounds its sums in
another order. They take along their own lane alone, so nobody urgent waits for work that is not.
"""

import asyncio
import functools
import logging
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass

from services.diffusion.engine import Engine, EngineClosed
from services.diffusion.faults import is_device_lost
from services.diffusion.restoration.restorer import MAX_BATCH_PX, Painting, Pixels, Restorer
from shared import metrics
from shared.contracts import Lane
from shared.errors import InternalError
from shared.jobs import Claim, LeaseLost

_log = logging.getLogger("llmga.diffusion.restoration")


@dataclass(slots=True, eq=False)
class _Waiting:
    painting: Painting
    lane: Lane
    shares: bool
    finished: Pixels | None = None

    def goes_with(self, other: "_Waiting") -> bool:
        is_fit = self.shares and other.shares and self.finished is None and self.lane is other.lane
        return is_fit and self.painting.mask.shape == other.painting.mask.shape


class Restorations:
    """The restorations of a worker's jobs, on its engine's thread."""

    def __init__(self, engine: Engine, restorer: Restorer) -> None:
        self.scale = restorer.config.scale
        self.sha256 = restorer.sha256
        self._engine = engine
        self._restorer = restorer
        self._waiting: list[_Waiting] = []
        self._lock = threading.Lock()

    async def restore(self, claim: Claim, painting: Painting) -> Pixels:
        """Return the finished picture of a job, uint8 (h, w, 3).

        Raises:
            JobError: the network failed.
            LeaseLost: the job was canceled or taken away.
        """
        request = claim.job.request
        waiting = _Waiting(painting, request.lane, shares=not request.deterministic)
        with self._lock:
            self._waiting.append(waiting)
        try:
            return await self._result(claim, waiting)
        finally:
            with self._lock:
                self._waiting.remove(waiting)

    async def _result(self, claim: Claim, waiting: _Waiting) -> Pixels:
        work = functools.partial(self._finished, waiting)
        try:
            future: Future[Pixels] = self._engine.run_aside(work, self._restorer.device, lane=waiting.lane)
        except EngineClosed as error:
            raise InternalError("The renderer is stopping.") from error

        def take_back() -> None:
            future.cancel()

        claim.on_lost(take_back)
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            if claim.lost.is_set():
                raise LeaseLost(f"job {claim.job.id} was dropped from the engine") from None
            raise

    def _finished(self, waiting: _Waiting) -> Pixels:
        """Return a finished picture; on the device thread."""
        if waiting.finished is None:
            height, width = waiting.painting.mask.shape
            with self._lock:
                beside = [other for other in self._waiting if other is not waiting and other.goes_with(waiting)]
            others = beside[: max(1, MAX_BATCH_PX // (height * width)) - 1]
            if not (others and self._try_together([waiting, *others])):
                self._run([waiting])
        assert waiting.finished is not None, "it has run"
        return waiting.finished

    def _try_together(self, group: Sequence[_Waiting]) -> bool:
        """Run several; where they fail together, each has its own turn, and fails alone or not at all."""
        try:
            self._run(group)
        except Exception as error:
            if is_device_lost(error):
                raise
            _log.warning("%d pictures could not be restored together", len(group), exc_info=error)
            return False
        return True

    def _run(self, group: Sequence[_Waiting]) -> None:
        started = time.perf_counter()
        pictures = self._restorer.restore_batch([waiting.painting for waiting in group])
        for waiting, picture in zip(group, pictures, strict=True):
            waiting.finished = picture
        metrics.RESTORE_SECONDS.observe(time.perf_counter() - started)
        metrics.RESTORED_TOGETHER.observe(len(group))
