"""The worker's life: settings, queue, checkpoints, profile, then jobs until it is told to stop.

As soon as its libraries are in it announces its phase, so that a gateway can say what it waits for, and its
status port answers. It ends with status 0 after draining; when the device thread dies the process ends at once,
and the leases bring its jobs back.
"""

import asyncio
import contextlib
import logging
import os
import signal
from dataclasses import dataclass, field
from typing import Any

import torch
from redis.asyncio import Redis

from services.diffusion.adapters import UnfitAdapter
from services.diffusion.checkpoints import UnfitCheckpoint
from services.diffusion.consumer import Renderer
from services.diffusion.credentials import Credentials, CredentialsError
from services.diffusion.engine import Engine
from services.diffusion.execution import Execution
from services.diffusion.faults import is_device_lost
from services.diffusion.library import ModelLibrary, Shelf
from services.diffusion.loading import LoadedModel
from services.diffusion.opening import Opener
from services.diffusion.previews import Unsuitable
from services.diffusion.profile import served_models
from services.diffusion.restoration.restorer import Restorer
from services.diffusion.threads import in_own_thread
from shared.artifacts import open_store
from shared.contracts import Announcement, Phase, ServedModel, Stage
from shared.contracts.generation import MAX_IMAGES
from shared.errors import ModelUnavailable, QueueUnavailable
from shared.jobs import Consumer, JobQueue, UnfitServer, check_server, connect
from shared.logs import configure
from shared.settings import Settings, SettingsError, worker_name
from shared.status import serve_status

DRAIN_S = 25.0  # below the 30 s that Kubernetes gives a pod
DEAD_DEVICE_STATUS = 70  # EX_SOFTWARE
_WATCH_S = 0.3

_log = logging.getLogger("llmga.diffusion")


class Unfit(Exception):
    """The service cannot start until its set-up is changed; the message says what to do."""


@dataclass(slots=True)
class _State:
    """What the worker says of itself."""

    worker: str
    phase: Phase = Phase.STARTING
    detail: str = ""
    models: list[ServedModel] = field(default_factory=list)
    consumer: Consumer | None = None

    def enter(self, phase: Phase, detail: str = "") -> None:
        self.phase, self.detail = phase, detail
        _log.info("phase: %s", phase.value, extra={"detail": detail})

    def announcement(self) -> Announcement:
        consumer = self.consumer
        is_ready = self.phase is Phase.READY and consumer is not None
        return Announcement(
            worker=self.worker,
            stage=Stage.RENDER,
            phase=self.phase,
            detail=self.detail,
            models=self.models,
            free=consumer.free() if consumer is not None and is_ready else 0,
            running=consumer.running if consumer is not None else 0,
        )


async def run(settings: Settings) -> int:
    """Run the worker until SIGTERM or SIGINT; return the exit status.

    Raises:
        SettingsError: a setting does not fit this machine.
        Unfit: a checkpoint or the queue's server has to be changed.
        QueueUnavailable: the queue's server cannot be reached.
    """
    configure(settings.log, service="diffusion")
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(len(os.sched_getaffinity(0)))
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    worker = Worker(settings)
    with worker.serve_status():
        starting = asyncio.create_task(worker.start())
        told = asyncio.create_task(stop.wait())
        await asyncio.wait([starting, told], return_when=asyncio.FIRST_COMPLETED)
        try:
            if not starting.done():
                starting.cancel()
                await asyncio.gather(starting, return_exceptions=True)
                return 0
            await starting
            await worker.work(stop)
        finally:
            told.cancel()
            await worker.close()
    _log.info("stopped")
    return 0


class Worker:
    """One process of the render stage.

    Raises:
        SettingsError: a setting does not fit this machine.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._default = settings.diffusion.default_model or next(iter(settings.diffusion.models))
        self._execution = Execution.of(settings)
        self._store = open_store(settings)
        self._state = _State(worker_name())
        self._opener = Opener(settings.diffusion, self._execution, self._tell)
        self._redis: Redis | None = None
        self._queue: JobQueue | None = None
        self._engine: Engine | None = None
        self._library: ModelLibrary | None = None
        self._restorer: Restorer | None = None
        self._credentials: Credentials | None = None

    def serve_status(self) -> contextlib.AbstractContextManager[object]:
        """Open the status port; 0 means none."""
        host, port = self._settings.metrics_host, self._settings.diffusion.metrics_port
        if port == 0:
            return contextlib.nullcontext()
        try:
            return serve_status(port, live=self._is_live, ready=self._is_ready, host=host)
        except OSError as error:
            reason = os.strerror(error.errno or 0)
            raise SettingsError(
                [f"LLMGA_DIFFUSION__METRICS_PORT: cannot listen on {host}:{port} ({reason})"]
            ) from error

    def _is_live(self) -> bool:
        consumer, engine = self._state.consumer, self._engine
        return (consumer is None or consumer.progressing()) and (engine is None or engine.is_alive)

    def _is_ready(self) -> tuple[bool, dict[str, Any]]:
        announcement = self._state.announcement()
        details = announcement.model_dump(mode="json") | {"execution": self._execution.describe()}
        if self._library is not None:
            loaded = {model.name: model.bytes for model in tuple(self._library.loaded.values())}
            details["memory"] = {"budget_bytes": self._library.budget_bytes, "loaded_bytes": loaded}
        return announcement.phase is Phase.READY, details

    async def start(self) -> None:
        """Connect, load and profile; announces the phases meanwhile."""
        redis = self._redis = await connect(self._settings.redis)
        try:
            await check_server(redis, self._settings.redis)
        except UnfitServer as error:
            raise Unfit(str(error)) from error
        queue = self._queue = JobQueue(redis, self._settings.queue, self._settings.redis.namespace)
        started = asyncio.Event()
        announcing = asyncio.create_task(_announce(queue, self._state, started))
        try:
            opener = self._opener
            await in_own_thread(opener.load_tiny_decoders)
            self._credentials = await asyncio.to_thread(opener.open_credentials)
            self._restorer = await self._load_restorer()
            shelves = await asyncio.to_thread(opener.inspect)
            _log.info("execution", extra=self._execution.describe())
            library = self._library = ModelLibrary(shelves, self._load, budget_bytes=opener.budget_bytes)
            async with library.hold(self._default):
                pass  # the others are loaded when they are asked for
        except UnfitCheckpoint as error:
            raise Unfit(f"LLMGA_DIFFUSION__MODELS: {error}") from error
        except UnfitAdapter as error:
            raise Unfit(f"LLMGA_DIFFUSION__ADAPTERS: {error}") from error
        except ModelUnavailable as error:
            raise Unfit(f"LLMGA_DIFFUSION__MODELS: {error.__cause__ or error}") from error
        except CredentialsError as error:
            raise Unfit(f"LLMGA_DIFFUSION__C2PA_CERTIFICATES, LLMGA_DIFFUSION__C2PA_KEY: {error}") from error
        except Unsuitable as error:
            raise Unfit(f"LLMGA_DIFFUSION__TAESD: {error}") from error
        finally:
            started.set()
            await announcing
        self._state.models = served_models(shelves, self._default, self._execution, restores=self._restorer is not None)
        self._engine = Engine(
            library.loaded,
            max_pictures=self._settings.diffusion.max_jobs * MAX_IMAGES,
            on_death=lambda _: os._exit(DEAD_DEVICE_STATUS),
        )
        self._engine.start()

    async def _load_restorer(self) -> Restorer | None:
        try:
            return await in_own_thread(self._opener.load_restorer)
        except UnfitCheckpoint as error:
            raise Unfit(f"LLMGA_DIFFUSION__RESTORATION: {error}") from error

    def _load(self, name: str, shelf: Shelf) -> LoadedModel:
        try:
            return self._opener.load(name, shelf)
        except Exception as error:
            if is_device_lost(error):
                os._exit(DEAD_DEVICE_STATUS)
            raise

    def _tell(self, phase: Phase, detail: str) -> None:
        if self._engine is None:  # later on it is ready, whatever it loads
            self._state.enter(phase, detail)

    async def work(self, stop: asyncio.Event) -> None:
        """Render jobs until `stop` is set, then drain."""
        queue, engine, library = self._queue, self._engine, self._library
        if queue is None or engine is None or library is None:
            raise RuntimeError("the worker was not started")
        renderer = Renderer(engine, self._store, library, self._restorer, self._credentials)
        consumer = self._state.consumer = Consumer(
            queue,
            self._settings.redis,
            stage=Stage.RENDER,
            worker=self._state.worker,
            handle=renderer.handle,
            capacity=self._settings.diffusion.max_jobs,
            announcement=self._state.announcement,
            batch_keys=library.wanted,
        )
        library.on_change = consumer.wake
        self._state.enter(Phase.READY)
        draining = asyncio.create_task(self._say_draining(stop, queue))
        try:
            await consumer.run(stop, drain_s=DRAIN_S)
        finally:
            draining.cancel()
            renderer.close()

    async def _say_draining(self, stop: asyncio.Event, queue: JobQueue) -> None:
        await stop.wait()
        self._state.enter(Phase.DRAINING)
        with contextlib.suppress(QueueUnavailable):
            await queue.announce(self._state.announcement())

    async def close(self) -> None:
        """End the device thread and leave the queue."""
        if self._engine is not None:
            self._engine.close()
        if self._queue is not None:
            with contextlib.suppress(QueueUnavailable):
                await self._queue.withdraw(self._state.worker)
        if self._redis is not None:
            await self._redis.aclose()


async def _announce(queue: JobQueue, state: _State, started: asyncio.Event) -> None:
    """Say the phase again and again, and soon after it changes, until the start-up is over.

    It is told by an event: on Python 3.11 a cancel that meets a command being sent is lost in
    `asyncio.wait_for`.
    """
    said: tuple[Phase, str] | None = None
    every_s = queue.settings.lease_ms / 3_000
    loop = asyncio.get_running_loop()
    said_at = 0.0
    while not started.is_set():
        if said != (state.phase, state.detail) or loop.time() - said_at >= every_s:
            said, said_at = (state.phase, state.detail), loop.time()
            with contextlib.suppress(QueueUnavailable):
                await queue.announce(state.announcement())
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(started.wait(), min(every_s, _WATCH_S))
