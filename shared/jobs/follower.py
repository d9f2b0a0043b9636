"""Following jobs: their events as they happen, replayed from any point.

The Stream is the truth, read in pages at the reader's pace, so a slow reader costs one page of memory;
messages only say when to look again. A follower rides out an outage of the server: it goes on where it was.
"""

import asyncio
import contextlib
import json
import logging
import re
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import cast

from redis.asyncio import Redis
from redis.exceptions import RedisError

from shared.contracts import TERMINAL, Event, EventType, JobStatus
from shared.jobs.cancellation import raise_if_canceled
from shared.jobs.listener import Listener
from shared.jobs.queue import JobQueue
from shared.jobs.server import unavailable

logger = logging.getLogger("llmga.jobs")

PAGE_EVENTS = 100
POLL_S = 1.0  # looks at the Stream this often when no message comes
START = "0-0"

_EVENT_ID = re.compile(r"[0-9]{1,19}-[0-9]{1,19}")


def is_event_id(text: str) -> bool:
    """Whether the text can be an event's id; for checking `Last-Event-ID`."""
    return _EVENT_ID.fullmatch(text) is not None


class EventFollower:
    """All followers of one process, over one pub/sub connection."""

    def __init__(self, redis: Redis, queue: JobQueue) -> None:
        self._redis = redis
        self._queue = queue
        self._listener = Listener(redis)
        self._watches: dict[str, set[Watch]] = {}
        self._hears_of_rest = False

    async def aclose(self) -> None:
        """Close the connection; running followers go on by looking every second."""
        await self._listener.aclose()

    async def follow(
        self, job_id: str, after: str = START, *, idle_s: float = 15.0
    ) -> AsyncGenerator[Event | None, None]:
        """Yield the events after the one named, and None after each `idle_s` of silence.

        Ends after the terminal event; also when the job is gone, or when nothing can follow `after`.
        """
        if not is_event_id(after):
            raise ValueError("an event id is <milliseconds>-<sequence>")
        loop = asyncio.get_running_loop()
        news = asyncio.Event()

        def tell(_: str | None) -> None:
            news.set()

        channel = self._queue.notify_channel(job_id)
        await self._listener.subscribe(channel, tell)
        try:
            silent_since = loop.time()
            look_at_record = True  # at the start and when messages stay away
            while True:
                raise_if_canceled()
                news.clear()
                page = await self._page(job_id, after)
                for event in page or ():
                    after = event.id
                    yield event
                    if event.type.ends_stream:
                        return
                if page:
                    silent_since = loop.time()
                    if len(page) == PAGE_EVENTS:
                        continue
                elif page is not None and look_at_record and await self._is_over(job_id, after):
                    return
                if loop.time() - silent_since >= idle_s:
                    silent_since = loop.time()
                    yield None
                rest_s = min(POLL_S, max(0.01, silent_since + idle_s - loop.time()))
                try:
                    async with asyncio.timeout(rest_s):
                        await news.wait()
                    look_at_record = False
                except TimeoutError:
                    look_at_record = True
        finally:
            await self._listener.unsubscribe(channel, tell)

    @asynccontextmanager
    async def watch(self, job_id: str) -> AsyncIterator["Watch"]:
        """Hear of a job's rest from now on, also of a job that is submitted only afterwards.

        It reads no events and shares one subscription with all other watches, so it costs less than `follow`.
        """
        watch = Watch(self, job_id)
        self._watches.setdefault(job_id, set()).add(watch)
        try:
            if not self._hears_of_rest:
                self._hears_of_rest = True
                await self._listener.subscribe(self._queue.rest_channel, self._told_of_rest)
            yield watch
        finally:
            watches = self._watches[job_id]
            watches.discard(watch)
            if not watches:
                del self._watches[job_id]

    def _told_of_rest(self, job_id: str | None) -> None:
        """Wake those who wait for one job, or all when messages may have been lost."""
        groups = self._watches.values() if job_id is None else (self._watches.get(job_id, ()),)
        for group in groups:
            for watch in group:
                watch.tell(is_certain=job_id is not None)

    async def _page(self, job_id: str, after: str) -> list[Event] | None:
        """Return the next events; None when the server does not answer."""
        try:
            entries = cast(
                list[tuple[str, dict[str, str]]],
                await self._redis.xrange(self._queue.events_key(job_id), min=f"({after}", max="+", count=PAGE_EVENTS),
            )
        except (RedisError, OSError) as error:
            if unavailable(error) is None:
                raise
            return None
        return [
            Event(
                id=entry_id,
                type=EventType(fields["type"]),
                job_id=job_id,
                data=json.loads(fields["data"]),
            )
            for entry_id, fields in entries
        ]

    async def status(self, job_id: str) -> str:
        """Return the job's status; `gone` when there is no job, `` when the server does not answer."""
        try:
            status = await self._redis.hget(self._queue.job_key(job_id), "status")
        except (RedisError, OSError) as error:
            if unavailable(error) is None:
                raise
            return ""
        return cast(str, status) if status is not None else "gone"

    async def _is_over(self, job_id: str, after: str) -> bool:
        if await self.status(job_id) not in _OVER:
            return False
        return await self._page(job_id, after) == []  # the last event may have come between the two reads


class Watch:
    """Attention to one job; made by `EventFollower.watch`."""

    def __init__(self, follower: EventFollower, job_id: str) -> None:
        self._follower = follower
        self._job_id = job_id
        self._news = asyncio.Event()
        self._rests = False

    def tell(self, *, is_certain: bool) -> None:
        """Say that the job rests, or that it may rest by now."""
        self._rests = self._rests or is_certain
        self._news.set()

    async def rested(self, *, timeout_s: float, is_new: bool = False) -> bool:
        """Wait until the job has ended or is held for approval; return False after `timeout_s`.

        A job that was submitted under this watch (`is_new`) is looked at only when there is news.
        """
        loop = asyncio.get_running_loop()
        end = loop.time() + timeout_s
        if not is_new:
            self._news.set()
        while True:
            raise_if_canceled()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, min(POLL_S, end - loop.time()))):
                    await self._news.wait()
            self._news.clear()
            if self._rests or await self._follower.status(self._job_id) in _RESTING:
                return True
            if loop.time() >= end:
                return False


_OVER = frozenset({"gone", *TERMINAL})
_RESTING = frozenset({*_OVER, JobStatus.AWAITING_APPROVAL})
