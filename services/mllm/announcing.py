"""A thread that tells the queue how far the start-up is, while the main thread is busy loading.

It also looks at the queue's server once, so that one which could lose jobs is refused before minutes of
loading.
"""

import asyncio
import logging
import threading
from collections.abc import Callable

from redis.asyncio import Redis
from redis.exceptions import RedisError

from services.mllm.service import Service
from shared.errors import QueueUnavailable
from shared.jobs import JobQueue, UnfitServer, check_server, connect

_log = logging.getLogger("llmga.mllm")

TURN_S = 0.5  # a new phase is told this soon
RETRY_S = 2.0


class StartupAnnouncer:
    """Announces the service until `close`; `refused` is called, from its thread, with an unfit server's
    faults."""

    def __init__(self, service: Service, refused: Callable[[UnfitServer], None]) -> None:
        self._service = service
        self._refused = refused
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="llmga-announcer", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop announcing; idempotent."""
        self._stop.set()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                asyncio.run(self._announce())
            except UnfitServer as error:
                self._refused(error)
                return
            except (QueueUnavailable, RedisError, OSError):
                _log.warning("the queue's server does not answer; trying again")
                self._stop.wait(RETRY_S)

    async def _announce(self) -> None:
        settings = self._service.settings
        redis = await connect(settings.redis, wait_s=1.0)
        try:
            await check_server(redis, settings.redis)
            await self._turn(redis)
        finally:
            await redis.aclose()

    async def _turn(self, redis: Redis) -> None:
        queue = JobQueue(redis, self._service.settings.queue, self._service.settings.redis.namespace)
        every_turns = max(int(queue.settings.lease_ms / 3_000 / TURN_S), 1)
        turn, told = 0, None
        while not self._stop.is_set():
            announcement = self._service.announcement()
            if announcement != told or turn % every_turns == 0:
                await queue.announce(announcement)
                told = announcement
            turn += 1
            await asyncio.sleep(TURN_S)
