"""A picture's snapshots on their way to the artifact store, one at a time.

They go there from the device thread, so that neither a busy event loop nor a slow queue holds them up.
"""

import asyncio
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future

from services.diffusion.snapshots import Snapshot, pack
from shared.artifacts import ArtifactStore
from shared.errors import StoreUnavailable

_log = logging.getLogger("llmga.diffusion")


class Keeping:
    """Keeps the snapshots of one picture (`snapshots.Keeper`), under a name of the store."""

    def __init__(self, store: ArtifactStore, name: str, fingerprint: str, threads: Executor) -> None:
        self._store = store
        self._name = name
        self._fingerprint = fingerprint
        self._threads = threads
        self._lock = threading.Lock()
        self._writing: Future[None] | None = None
        self._is_closed = False

    def keep(self, snapshot: Snapshot, kept: Callable[[], None]) -> None:
        """Begin to write a snapshot; one that could not be written counts as kept: waiting would not make it safer."""
        with self._lock:
            is_busy = self._writing is not None and not self._writing.done()
            if is_busy or self._is_closed:  # busy: this is the last one, as a picture does not go on so far
                return
            try:
                self._writing = writing = self._threads.submit(self._write, snapshot)
            except RuntimeError:  # the threads have ended: this worker does
                return
        writing.add_done_callback(lambda _: kept())

    async def close(self) -> None:
        """Keep nothing any more; returns when the last snapshot is written."""
        with self._lock:
            self._is_closed = True
        if self._writing is not None:
            await asyncio.wait([asyncio.wrap_future(self._writing)])

    def _write(self, snapshot: Snapshot) -> None:
        try:
            self._store.save_state(self._name, pack(snapshot, self._fingerprint))
        except StoreUnavailable as error:
            _log.warning("a snapshot could not be kept: %s", error)  # a killed picture makes more steps again
