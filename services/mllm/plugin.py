"""The endpoint plugin of vLLM's server: our route, the job consumer, and an orderly end.

vLLM calls `attach_router` while it builds its app and `init_state` when the engine is up. From then on a task
of ours lives beside the server: it warms the engine up, waits until the port answers, claims jobs, and on
SIGTERM drains them *before* the engine is stopped; vLLM alone would stop the engine under them.
"""

import asyncio
import contextlib
import logging
import signal
from argparse import Namespace
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from fastapi import FastAPI
from starlette.datastructures import State
from vllm.engine.protocol import EngineClient

from services.mllm import chat
from services.mllm.api import PATH, PromptEndpoint
from services.mllm.chat import ChatEndpoint, TokenTexts
from services.mllm.consumer import PromptJobs
from services.mllm.conversation import Turn
from services.mllm.engine import EngineDied, VLLMEngine, prompt_writer
from services.mllm.flow import Flow, Load
from services.mllm.service import Service, current
from services.mllm.writing import PromptWriter, Sampling
from shared.contracts import Phase, Stage
from shared.errors import LLMGAError, QueueUnavailable
from shared.jobs import Claim, Consumer, JobQueue, UnfitServer, check_server, connect

_log = logging.getLogger("llmga.mllm")

DRAIN_S = 20.0  # jobs that run longer are given back, and start again elsewhere
ENGINE_CHECK_S = 0.5
ROOM_CHECK_S = 0.05  # vLLM has no event for it
EXIT_ENGINE_DIED = 3
EXIT_UNFIT_SERVER = 2
# What of vLLM's own routes stays: health, metrics, the model's name. Everything else would be a way around
# the queue.
KEPT_PATHS = frozenset({"/health", "/metrics", "/v1/models", "/version"})


def create() -> "GenerationPromptPlugin":
    """Return the plugin; the entry point that vLLM calls.

    Raises:
        RuntimeError: the process was not started by `python -m services.mllm`.
    """
    return GenerationPromptPlugin(current())


class GenerationPromptPlugin:
    """vLLM's contract: `name`, `required_tasks`, `attach_router`, `init_state`."""

    name = "llmga"
    required_tasks = ("generate",)

    def __init__(self, service: Service) -> None:
        self._service = service
        self._writer: PromptWriter | None = None
        self._texts: TokenTexts | None = None
        self._task: asyncio.Task[None] | None = None
        self._stop = asyncio.Event()

    def attach_router(self, app: FastAPI) -> None:
        """Add our routes, and take away what this server has no need to show."""
        app.router.routes[:] = [
            route for route in app.router.routes if getattr(route, "path", "").removesuffix("/") in KEPT_PATHS
        ]
        endpoint = PromptEndpoint(self._writer_now, self._service.settings.mllm)
        app.add_route(PATH, endpoint.answer, methods=["POST"])
        talk = ChatEndpoint(self._writer_now, self._texts_now, self._service.settings.mllm, model=self._service.model)
        app.add_route(chat.PATH, talk.answer, methods=["POST"])

    async def init_state(self, engine_client: EngineClient | None, state: State, args: Namespace) -> None:
        """Start our task beside the server."""
        if engine_client is None:
            raise RuntimeError("this plugin needs an engine")
        service = self._service
        service.enter(Phase.WARMING_UP)
        self._writer = prompt_writer(engine_client, service.facts, service.settings.mllm, model=service.model)
        self._texts = TokenTexts(engine_client.renderer.get_tokenizer())
        self._task = asyncio.create_task(
            self._live(VLLMEngine(engine_client, service.facts), state), name="llmga-service"
        )

    def _writer_now(self) -> PromptWriter:
        assert self._writer is not None, "vLLM opens the port after `init_state`"
        return self._writer

    def _texts_now(self) -> TokenTexts:
        assert self._texts is not None, "vLLM opens the port after `init_state`"
        return self._texts

    async def _live(self, engine: VLLMEngine, state: State) -> None:
        """Serve jobs until told to stop, then end the server."""
        service = self._service
        watch = asyncio.create_task(self._watch(engine), name="llmga-engine-watch")
        try:
            await self._warm_up()
            # vLLM has no event for it
            while not getattr(getattr(state, "server", None), "started", False):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
            self._take_signals()
            await self._serve_jobs(engine)
        except UnfitServer as error:
            _log.error("%s", error)
            service.exit_status = EXIT_UNFIT_SERVER
        except Exception:
            _log.exception("the job consumer ended")
            service.exit_status = service.exit_status or 1
        finally:
            watch.cancel()
            if (server := getattr(state, "server", None)) is not None:
                server.should_exit = True

    async def _warm_up(self) -> None:
        """Write one short answer, so that no job pays for what the first call prepares."""
        parts = self._writer_now().write(
            [Turn("a red circle")], Sampling(max_tokens=8, temperature=0.0), request_id="warm-up", priority=0
        )
        with contextlib.suppress(LLMGAError):  # an answer without a prompt warms up as well
            async with aclosing(parts):
                async for _ in parts:
                    pass

    async def _serve_jobs(self, engine: VLLMEngine) -> None:
        service, settings = self._service, self._service.settings
        redis = await self._connected()
        if redis is None:
            return
        try:
            await check_server(redis, settings.redis)
            queue = JobQueue(redis, settings.queue, settings.redis.namespace)
            assert service.artifacts is not None, "opened before the server is started"
            jobs = PromptJobs(self._writer_now(), settings.mllm, service.artifacts)

            async def handle(claim: Claim) -> None:
                try:
                    await jobs.handle(claim)
                except EngineDied:
                    self._engine_died()  # before the attempt fails, so that this process does not claim the next one
                    raise

            def load() -> Load:
                found = engine.load()
                # A job that was claimed a moment ago is not in vLLM yet; one that only tells its end is no longer.
                return replace(found, unfinished=max(found.unfinished, consumer.running - jobs.finishing))

            flow = Flow(settings.mllm.max_concurrency, load)
            consumer = Consumer(
                queue,
                settings.redis,
                stage=Stage.PROMPT,
                worker=service.worker,
                handle=handle,
                capacity=flow.capacity,
                room=flow.room,
                announcement=lambda: service.announcement(running=consumer.running, free=consumer.free()),
            )
            service.enter(Phase.READY)
            service.is_live = consumer.progressing
            service.taken_over()
            _log.info("ready", extra={"model": service.model})
            filling = asyncio.create_task(self._keep_full(flow, consumer), name="llmga-flow")
            try:
                await consumer.run(self._stop, drain_s=DRAIN_S)
            finally:
                filling.cancel()
        finally:
            await redis.aclose()

    async def _keep_full(self, flow: Flow, consumer: Consumer) -> None:
        """Tell the consumer when vLLM has room again: others than its jobs may have left."""
        had_room = True
        while True:
            has_room = flow.room() > 0
            if has_room and not had_room:
                consumer.wake()
            had_room = has_room
            await asyncio.sleep(ROOM_CHECK_S)

    async def _connected(self) -> Any:
        while not self._stop.is_set():
            try:
                return await connect(self._service.settings.redis, wait_s=2.0)
            except QueueUnavailable:
                _log.warning("the queue's server does not answer; trying again")
        return None

    async def _watch(self, engine: VLLMEngine) -> None:
        """Stop claiming as soon as the engine is gone: the leases bring its jobs back."""
        while not engine.is_dead:  # noqa: ASYNC110  # vLLM has no event for it
            await asyncio.sleep(ENGINE_CHECK_S)
        self._engine_died()

    def _engine_died(self) -> None:
        if self._service.exit_status != EXIT_ENGINE_DIED:
            _log.error("the engine process is gone; this process ends")
        self._service.exit_status = EXIT_ENGINE_DIED
        self._begin_to_end()

    def _take_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._begin_to_end)

    def _begin_to_end(self) -> None:
        if self._stop.is_set():
            return
        _log.info("draining")
        self._service.enter(Phase.DRAINING)
        self._stop.set()
