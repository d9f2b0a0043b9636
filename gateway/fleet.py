"""The gateway's view of the queue and its workers, refreshed every second in the background.

Requests and probes read the last view, so that none of them waits for the queue's server; a request that would be
refused because of the view asks for a new one first. The same loop reaps, which also keeps the queue's gauges;
another one sweeps expired pictures.
"""

import asyncio
import logging
import time
from dataclasses import dataclass, field

from gateway.offers import Offers
from shared.artifacts import ArtifactStore
from shared.errors import QueueUnavailable
from shared.jobs import JobQueue

REFRESH_S = 1.0
STALE_S = 3.0  # a view that is older says that the queue's server does not answer
SWEEP_S = 600.0
RETRY_AFTER_S = 2
_ASK_AGAIN_S = 0.1  # requests that no worker can serve refresh the view at most this often

_log = logging.getLogger("llmga.gateway")


@dataclass(frozen=True, slots=True)
class View:
    """One look at the queue; `at_s` is this process's monotonic clock."""

    offers: Offers = field(default_factory=Offers)
    at_s: float = float("-inf")

    @property
    def is_fresh(self) -> bool:
        """Whether the queue's server answered lately."""
        return time.monotonic() - self.at_s < STALE_S


class Fleet:
    """Keeps the view; `beat`, `tend` and `sweep` run beside the requests."""

    def __init__(self, queue: JobQueue, artifacts: ArtifactStore) -> None:
        self._queue = queue
        self._artifacts = artifacts
        self._lock = asyncio.Lock()
        self._beat_s = time.monotonic()
        self.view = View()

    def check(self) -> None:
        """Refuse at once what could only wait for a server that has not answered for a while.

        Raises:
            QueueUnavailable: the last view is old.
        """
        if not self.view.is_fresh:
            raise QueueUnavailable("The queue's server does not answer.", retry_after_s=RETRY_AFTER_S)

    @property
    def is_alive(self) -> bool:
        """Whether the event loop still turns, as seen from other threads."""
        return time.monotonic() - self._beat_s < 10 * REFRESH_S

    async def look_again(self) -> Offers:
        """Return the offers as they are now, not a second ago.

        Raises:
            QueueUnavailable: the queue's server does not answer.
        """
        async with self._lock:  # those who wait share the answer of the one who asks
            if time.monotonic() - self.view.at_s > _ASK_AGAIN_S:
                self.view = View(Offers.of(await self._queue.workers()), time.monotonic())
        return self.view.offers

    async def beat(self) -> None:
        """Show that the event loop turns, until canceled."""
        while True:
            self._beat_s = time.monotonic()
            await asyncio.sleep(REFRESH_S)

    async def tend(self) -> None:
        """Reap and refresh the view until canceled; an unreachable server only makes the view old."""
        was_reachable = True
        while True:
            try:
                async with asyncio.timeout(STALE_S):
                    await self._queue.reap()
                    await self.look_again()
                was_reachable = True
            except (QueueUnavailable, TimeoutError):
                if was_reachable:
                    _log.warning("the queue's server does not answer")
                was_reachable = False
            except Exception:
                _log.exception("tending the queue failed")
            await asyncio.sleep(REFRESH_S)

    async def sweep(self) -> None:
        """Delete expired pictures until canceled."""
        while True:
            try:
                await asyncio.to_thread(self._artifacts.sweep)
            except Exception:
                _log.exception("sweeping expired pictures failed")
            await asyncio.sleep(SWEEP_S)
