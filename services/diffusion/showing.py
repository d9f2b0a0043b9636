"""A picture's previews on their way to whoever follows its job.

They travel inside their events, as JPEG in base64: a follower has them without another request, and they are gone with
the job's events. So their size is bounded, each alone and all of a job together. One is on its way at a time; those
that come meanwhile are left out. Before a preview is sent, its step is noted in the artifact store: an attempt that
goes on from an earlier step does not show it again.
"""

import asyncio
import base64
import logging
from concurrent.futures import Executor
from contextlib import suppress
from typing import Any

from services.diffusion.handles import Preview
from shared import metrics
from shared.artifacts import ArtifactStore
from shared.contracts import EventType
from shared.errors import StoreUnavailable
from shared.jobs import Claim, LeaseLost
from shared.media import encode_thumbnail

MAX_BYTES = 12_000  # 16,000 in base64
MAX_JOB_BYTES = 192_000  # of all previews of a job, in the queue's memory until the job expires

_log = logging.getLogger("llmga.diffusion")


def state_name(job_id: str, index: int) -> str:
    """Return the name of the state that holds the last step shown of a picture."""
    return f"{job_id}.{index}.shown"


class Showing:
    """The previews of one picture; lives in the event loop, works in threads."""

    def __init__(self, claim: Claim, index: int, store: ArtifactStore, threads: Executor) -> None:
        request = claim.job.request
        self._claim = claim
        self._index = index
        self._store = store
        self._threads = threads
        self._name = state_name(claim.job.id, index)
        self._max_bytes = min(MAX_BYTES, MAX_JOB_BYTES // max(1, request.n * request.previews))
        self._task: asyncio.Task[None] | None = None
        self._is_sending = False
        self._is_over = False

    def take(self, preview: Preview) -> None:
        """Show a preview, unless the last one is still on its way."""
        if not self._is_over and (self._task is None or self._task.done()):
            self._task = asyncio.create_task(self._show(preview))

    async def close(self) -> None:
        """Show nothing any more; one that is being sent right now goes out first."""
        self._is_over = True
        if self._task is not None:
            if not self._is_sending:
                self._task.cancel()
            (error,) = await asyncio.gather(self._task, return_exceptions=True)
            if isinstance(error, Exception):
                _log.warning("a preview could not be sent", exc_info=error)

    async def _show(self, preview: Preview) -> None:
        data = await asyncio.get_running_loop().run_in_executor(self._threads, self._packed, preview)
        if data is None or self._is_over:
            return
        self._is_sending = True
        with suppress(LeaseLost):  # whoever follows the picture is told as well
            await self._claim.emit(EventType.RENDER_PREVIEW, data)
            metrics.PREVIEWS.inc()
        self._is_sending = False

    def _packed(self, preview: Preview) -> dict[str, Any] | None:
        """Return the event's data, None when an earlier attempt has shown this step."""
        step = preview.progress.step
        shown = self._store.load_state(self._name)
        if shown is not None and shown.isdigit() and int(shown) >= step:
            return None
        try:
            self._store.save_state(self._name, b"%d" % step)
        except StoreUnavailable as error:
            _log.warning("it could not be noted that a preview is shown: %s", error)
        data, width, height = encode_thumbnail(preview.pixels, self._max_bytes)
        return {
            "index": self._index,
            "step": step,
            "total_steps": preview.progress.total_steps,
            "media_type": "image/jpeg",
            "width": width,
            "height": height,
            "data": base64.b64encode(data).decode("ascii"),
        }
