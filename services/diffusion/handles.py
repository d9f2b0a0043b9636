"""The seam between the event loop and the device thread: one handle per picture.

The device thread posts, the loop follows. A handle keeps the latest progress and snapshot only, so that a slow follower
costs nothing: it sees fewer steps, never an old one, and the device thread never waits.
"""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from services.diffusion.snapshots import Snapshot
from services.diffusion.stages import Pixels
from shared.errors import LLMGAError


@dataclass(frozen=True, slots=True)
class Progress:
    """Steps done of those that were asked for."""

    step: int
    total_steps: int


@dataclass(frozen=True, slots=True)
class Finished:
    """The picture, uint8 (height, width, 3)."""

    pixels: Pixels


class Handle:
    """One picture that the engine has; made in an event loop and followed there."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._loop = asyncio.get_running_loop()
        self._changed = asyncio.Event()
        self._lock = threading.Lock()
        self._is_signaled = False
        self._progress: Progress | None = None
        self._snapshot: Snapshot | None = None
        self._outcome: Finished | LLMGAError | None = None
        self._is_over = False
        self.is_canceled = False  # written by anybody, read by the device thread at each step

    def cancel(self) -> None:
        """Ask for the end; the engine drops the picture before its next UNet call. Idempotent, any thread."""
        self.is_canceled = True
        self._wake()

    async def events(self) -> AsyncIterator[Progress | Snapshot | Finished]:
        """Follow the picture; ends with `Finished`, or without it when it was canceled.

        Raises:
            LLMGAError: the picture could not be made.
        """
        while True:
            await self._changed.wait()
            self._changed.clear()
            with self._lock:
                self._is_signaled = False
                progress, self._progress = self._progress, None
                snapshot, self._snapshot = self._snapshot, None
                outcome, is_over = self._outcome, self._is_over
            if progress is not None:
                yield progress
            if snapshot is not None:
                yield snapshot
            if isinstance(outcome, LLMGAError):
                raise outcome
            if outcome is not None:
                yield outcome
            if is_over:
                return

    def post(self, progress: Progress, snapshot: Snapshot | None = None) -> None:
        """Tell of progress, and what to keep of the picture so far; for the device thread."""
        with self._lock:
            self._progress = progress
            self._snapshot = snapshot or self._snapshot
        self._signal()

    def end(self, outcome: Finished | LLMGAError | None) -> None:
        """Tell of the end, `None` for a cancel; for the device thread."""
        with self._lock:
            if self._is_over:
                return
            self._outcome, self._is_over = outcome, True
        self._signal()

    def _signal(self) -> None:
        with self._lock:
            if self._is_signaled:
                return
            self._is_signaled = True
        try:
            self._loop.call_soon_threadsafe(self._changed.set)
        except RuntimeError:
            pass  # the loop is closed: nobody follows any more
