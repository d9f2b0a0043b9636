"""The seam between the event loop and the device thread: one handle per picture.

The device thread posts, the loop follows. A handle keeps the latest progress and preview only, so that a slow
follower costs nothing: it sees fewer steps, never an old one, and the device thread never waits. To wake a loop is to
hand the interpreter over to it, so the device thread does that once per turn, for all handles at once (`Bell`).
"""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from services.diffusion.stages import Pixels
from shared.errors import LLMGAError


@dataclass(frozen=True, slots=True)
class Progress:
    """Steps done of those that were asked for."""

    step: int
    total_steps: int


@dataclass(frozen=True, slots=True)
class Preview:
    """What the picture is going to look like: pixels uint8 (height, width, 3), small (`previews.MAX_SIDE_PX`)."""

    progress: Progress
    pixels: Pixels


@dataclass(frozen=True, slots=True)
class Finished:
    """The picture, uint8 (height, width, 3)."""

    pixels: Pixels


class Bell:
    """Wakes the followers of all handles that have changed since it was rung last; of the device thread alone."""

    def __init__(self) -> None:
        self._changed: dict[asyncio.AbstractEventLoop, list[asyncio.Event]] = {}

    def add(self, loop: asyncio.AbstractEventLoop, changed: asyncio.Event) -> None:
        """Have an event of a loop set at the next ring."""
        self._changed.setdefault(loop, []).append(changed)

    def ring(self) -> None:
        """Set the events, each loop woken once."""
        while self._changed:
            loop, events = self._changed.popitem()
            try:
                loop.call_soon_threadsafe(_set_all, events)
            except RuntimeError:
                pass  # the loop is closed: nobody follows any more


def _set_all(events: list[asyncio.Event]) -> None:
    for event in events:
        event.set()


class Handle:
    """One picture that the engine has; made in an event loop and followed there."""

    def __init__(self, wake: Callable[[], None], bell: Bell) -> None:
        self._wake = wake
        self._bell = bell
        self._loop = asyncio.get_running_loop()
        self._changed = asyncio.Event()
        self._lock = threading.Lock()
        self._is_signaled = False
        self._progress: Progress | None = None
        self._preview: Preview | None = None
        self._outcome: Finished | LLMGAError | None = None
        self._is_over = False
        self.is_canceled = False  # written by anybody, read by the device thread at each step

    def cancel(self) -> None:
        """Ask for the end; the engine drops the picture before its next UNet call. Idempotent, any thread."""
        self.is_canceled = True
        self._wake()

    async def events(self) -> AsyncIterator[Progress | Preview | Finished]:
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
                preview, self._preview = self._preview, None
                outcome, is_over = self._outcome, self._is_over
            if progress is not None:
                yield progress
            if preview is not None and not is_over:
                yield preview
            if isinstance(outcome, LLMGAError):
                raise outcome
            if outcome is not None:
                yield outcome
            if is_over:
                return

    def post(self, progress: Progress) -> None:
        """Tell of progress; for the device thread."""
        with self._lock:
            self._progress = progress
        self._signal()

    def show(self, preview: Preview) -> None:
        """Tell how the picture is going to look; for the device thread."""
        with self._lock:
            self._preview = preview
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
        self._bell.add(self._loop, self._changed)
