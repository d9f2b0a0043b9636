"""One pub/sub connection of a process, shared by all who wait for something.

Messages are hints: who waits also looks now and then. So a lost message costs time, never correctness, and
the connection may break and heal at any moment; after healing every waiter is told to look.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import Any, cast

from redis.asyncio import Redis
from redis.exceptions import RedisError

from shared.jobs.cancellation import raise_if_canceled

logger = logging.getLogger("llmga.jobs")

POLL_S = 1.0  # longest wait for a message; below every socket timeout
PAUSE_S = 0.3  # before trying to connect again
LINGER_S = 5.0  # an unused connection is kept for the next waiter

Callback = Callable[[str | None], None]


class Listener:
    """Subscriptions that come and go over one connection.

    A callback gets the message's text, or None when its subscription has (again) become active.
    """

    def __init__(self, redis: Redis) -> None:
        self._pubsub = redis.pubsub()
        self._callbacks: dict[str, set[Callback]] = {}
        self._asked: set[str] = set()  # channels whose last command to the server was SUBSCRIBE
        self._missing: set[str] = set()  # channels that somebody waits for and that are not asked for yet
        self._task: asyncio.Task[None] | None = None
        self._sending = asyncio.Lock()

    async def subscribe(self, channel: str, callback: Callback) -> None:
        """Call `callback` with what is published on a channel, from the moment that it is told None."""
        self._callbacks.setdefault(channel, set()).add(callback)
        if channel in self._asked:
            callback(None)
            return
        self._missing.add(channel)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run(), name="pubsub")
        else:
            with contextlib.suppress(RedisError, OSError):  # the task asks again
                await self._ask()

    async def unsubscribe(self, channel: str, callback: Callback) -> None:
        """Forget a subscription."""
        waiting = self._callbacks.get(channel)
        if waiting is None:
            return
        waiting.discard(callback)
        if waiting:
            return
        del self._callbacks[channel]
        self._missing.discard(channel)
        async with self._sending:
            if channel in self._asked and channel not in self._callbacks:
                self._asked.discard(channel)
                with contextlib.suppress(RedisError, OSError):  # a subscription too many harms nobody
                    await self._pubsub.unsubscribe(channel)

    async def aclose(self) -> None:
        """Close the connection; waiters are told nothing more."""
        self._callbacks.clear()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
            self._task = None

    async def _ask(self) -> None:
        async with self._sending:
            channels = tuple(self._missing)
            if channels:
                await self._pubsub.subscribe(*channels)
                self._asked.update(channels)
                self._missing.difference_update(channels)

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        idle_since = loop.time()
        try:
            while True:
                raise_if_canceled()
                if self._callbacks:
                    idle_since = loop.time()
                elif loop.time() - idle_since > LINGER_S:
                    return
                try:
                    await self._ask()
                    if self._pubsub.connection is None:  # nobody has subscribed yet, or not any more
                        await cast(Any, self._pubsub).connect()
                    message = await self._pubsub.get_message(timeout=POLL_S)
                except (RedisError, OSError):
                    if not self._callbacks:
                        return
                    await asyncio.sleep(PAUSE_S)  # the client subscribes again when it has connected
                    continue
                if message is not None:
                    self._deliver(message["type"], message["channel"], message["data"])
        finally:
            self._missing.update(self._callbacks)
            self._asked.clear()
            await cast(Any, self._pubsub).aclose()

    def _deliver(self, kind: str, channel: str, data: str) -> None:
        if kind not in {"message", "subscribe"}:
            return
        for callback in tuple(self._callbacks.get(channel, ())):
            callback(data if kind == "message" else None)
