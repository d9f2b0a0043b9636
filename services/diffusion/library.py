"""The checkpoints of a worker: all are known, some are loaded, and those that a picture is made with stay.

Loading happens in worker threads, one checkpoint at a time, while the device thread goes on. When the next one would
exceed the memory budget, the least recently used that nobody holds leaves first. When all are held, the least recently
used takes no new holders and leaves with its last one, so that steady work with one checkpoint never keeps another out.

All methods belong to one event loop; only `loaded` is read by the device thread, for checkpoints that are held.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import MappingProxyType

from services.diffusion.adapters import AdapterFile
from services.diffusion.checkpoints import CheckpointFiles
from services.diffusion.faults import is_out_of_memory
from services.diffusion.loading import LoadedModel
from services.diffusion.stages import release_memory
from services.diffusion.threads import in_own_thread
from shared import metrics
from shared.errors import ModelUnavailable

PATIENCE_S = 5.0  # longest time for which only jobs of loaded checkpoints are looked for while there are such jobs

_log = logging.getLogger("llmga.diffusion")


@dataclass(frozen=True, slots=True)
class Shelf:
    """What can be loaded under one name, the bytes that it is expected to take, and the adapters that fit it."""

    files: CheckpointFiles
    expected_bytes: int
    adapters: tuple[AdapterFile, ...] = ()


class ModelLibrary:
    """Loads checkpoints when they are asked for, within a budget of bytes (None: without bound)."""

    def __init__(
        self,
        shelves: Mapping[str, Shelf],
        load: Callable[[str, Shelf], LoadedModel],
        *,
        budget_bytes: int | None,
        on_change: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`load` is called in a worker thread; `on_change` in the event loop, when others are loaded than before."""
        self.shelves = dict(shelves)
        self.budget_bytes = budget_bytes
        self.on_change = on_change
        self._load = load
        self._clock = clock
        self._loaded: dict[str, LoadedModel] = {}  # the least recently used first
        self.loaded: Mapping[str, LoadedModel] = MappingProxyType(self._loaded)
        self._bytes = {name: shelf.expected_bytes for name, shelf in self.shelves.items()}  # measured once loaded
        self._holders: Counter[str] = Counter()
        self._leaving: set[str] = set()
        self._loading: dict[str, asyncio.Task[None]] = {}
        self._one_at_a_time = asyncio.Lock()  # whoever waits longest is next
        self._change = asyncio.Event()  # a new one for each change
        self._opened_at = clock()

    @classmethod
    def of(cls, *models: LoadedModel) -> "ModelLibrary":
        """Return a library of models that are loaded already, and of no others."""
        library = cls({}, _nothing, budget_bytes=None)
        for model in models:
            library.shelves[model.name] = Shelf(model.files, model.bytes)
            library._loaded[model.name] = model
        return library

    @property
    def used_bytes(self) -> int:
        """Bytes of the checkpoints that are loaded."""
        return sum(self._bytes[name] for name in self._loaded)

    def wanted(self) -> Sequence[Collection[str]]:
        """Return whose jobs to claim, in order of preference: those of loaded checkpoints, then any that are known.

        Every `PATIENCE_S` the preference is left out, so that the job whose turn it is gets claimed, whatever its
        checkpoint.
        """
        everything = list(self.shelves)
        ready = [name for name in self._loaded if name not in self._leaving]
        if len(ready) == len(everything) or not ready:
            return [everything]
        if self._clock() - self._opened_at >= PATIENCE_S:  # safeguard: no checkpoint starves
            self._opened_at = self._clock()
            return [everything]
        return [ready, everything]

    @asynccontextmanager
    async def hold(self, name: str) -> AsyncIterator[LoadedModel]:
        """Keep a checkpoint loaded meanwhile, after waiting for it if need be.

        Raises:
            ModelUnavailable: it could not be loaded.
        """
        while name in self._leaving:
            await self._change.wait()
        self._holders[name] += 1  # from before it is loaded, so that it cannot leave as soon as it has come
        try:
            if name not in self._loaded:
                await self._load_once(name)
            model = self._loaded[name] = self._loaded.pop(name)  # now the most recently used
            yield model
        finally:
            self._holders[name] -= 1
            self._tell()

    async def _load_once(self, name: str) -> None:
        loading = self._loading.get(name)
        if loading is None:
            loading = self._loading[name] = asyncio.create_task(self._bring(name), name=f"load {name}")
            loading.add_done_callback(lambda done: self._forget(name, done))
        await asyncio.shield(loading)  # others may wait for it too

    def _forget(self, name: str, loading: asyncio.Task[None]) -> None:
        del self._loading[name]
        if not loading.cancelled():
            loading.exception()  # whoever waited has it; without anybody it was logged

    async def _bring(self, name: str) -> None:
        async with self._one_at_a_time:
            await self._make_room(name)
            started = self._clock()
            try:
                model = await in_own_thread(self._load, name, self.shelves[name])
            except Exception as error:
                _log.error("a checkpoint could not be loaded", exc_info=error, extra={"model": name})
                raise ModelUnavailable(_reason(name, error)) from error
            self._loaded[name] = model
            self._bytes[name] = model.bytes
            metrics.MODEL_LOAD_SECONDS.labels(name).observe(self._clock() - started)
            metrics.LOADED_MODEL_BYTES.labels(name).set(model.bytes)
            self._tell()
            self.on_change()

    async def _make_room(self, name: str) -> None:
        """Let others leave until this one fits."""
        while self._loaded and self.budget_bytes is not None:
            if self.used_bytes + self._bytes[name] <= self.budget_bytes:
                break
            self._leaving.clear()
            idle = [other for other in self._loaded if not self._holders[other]]
            if idle:
                self._evict(idle[0])
                continue
            self._leaving.add(next(iter(self._loaded)))  # safeguard: no new holders
            await self._change.wait()
        self._leaving.clear()
        self._tell()

    def _evict(self, name: str) -> None:
        device = self._loaded.pop(name).device
        release_memory(device)
        _log.info("unloaded", extra={"model": name, "bytes": self._bytes[name]})
        metrics.LOADED_MODEL_BYTES.labels(name).set(0)
        self._tell()
        self.on_change()

    def _tell(self) -> None:
        """Let all who wait look again."""
        self._change.set()
        self._change = asyncio.Event()


def _reason(name: str, error: Exception) -> str:
    if is_out_of_memory(error):
        return f"The model `{name}` does not fit the memory of the renderer."
    return f"The files of the model `{name}` could not be loaded."


def _nothing(name: str, _: Shelf) -> LoadedModel:
    raise KeyError(name)
