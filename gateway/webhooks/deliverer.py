"""The task of each gateway that sends what is due.

At least once: a delivery is due again when the lease of its attempt is over, and its id tells the receiver that it
comes again. What is not taken with a 2xx is tried later, ever more rarely, and given up after its attempts.
"""

import asyncio
import json
import logging
import random
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from http import HTTPStatus

from redis.exceptions import RedisError

from gateway.webhooks.transport import RefusedAddress, Sender, Undeliverable
from shared import metrics
from shared.contracts.webhooks import WebhookEvent, WebhookMessage, origin_of
from shared.errors import QueueUnavailable
from shared.jobs import JobQueue
from shared.jobs.cancellation import raise_if_canceled
from shared.jobs.listener import Listener
from shared.webhooks.settings import WebhookSettings
from shared.webhooks.signing import signature, tenant_secret
from shared.webhooks.store import Delivery, DeliveryStore

MAX_AT_ONCE = 32  # receivers are waited for, which costs next to nothing
SPARE_S = 10.0  # of a lease: for the way to the queue's server and back
POLL_S = 1.0
FIRST_DELAY_S, DELAY_FACTOR, MAX_DELAY_S = 5.0, 4.0, 3_600.0

_log = logging.getLogger("llmga.webhooks")


def delay_s(attempt: int, chance: float) -> float:
    """Return how long to wait after that attempt failed: 5 s, 20 s, 80 s, … up to an hour, and up to a quarter more by
    `chance` (0 to 1), so that what failed together does not come back together."""
    return min(FIRST_DELAY_S * DELAY_FACTOR ** (attempt - 1), MAX_DELAY_S) * (1 + chance / 4)


class Deliverer:
    """Sends the deliveries of one queue; `tend` runs beside the requests."""

    def __init__(
        self,
        queue: JobQueue,
        settings: WebhookSettings,
        *,
        sender: Sender | None = None,
        delay: Callable[[int, float], float] = delay_s,
    ) -> None:
        self._queue = queue
        self._settings = settings
        self._store = DeliveryStore(queue)
        self._sender = sender or Sender(allow_private=settings.allow_private, timeout_s=settings.timeout_s)
        self._delay = delay
        self._wake = asyncio.Event()
        self._running: set[asyncio.Task[None]] = set()

    async def tend(self) -> None:
        """Send what is due until canceled; what is under way then is sent again by another gateway, or the next."""
        if not self._settings.hosts:
            return
        listener = Listener(self._queue.redis)
        try:
            await listener.subscribe(self._store.channel, self._told)
            while True:
                raise_if_canceled()
                self._wake.clear()
                try:
                    await self._take()
                except (QueueUnavailable, RedisError, OSError) as error:
                    _log.debug("the queue's server is away", extra={"error": type(error).__name__})
                except Exception:
                    _log.exception("taking webhooks failed")
                try:
                    async with asyncio.timeout(POLL_S):
                        await self._wake.wait()
                except TimeoutError:
                    pass
        finally:
            for task in tuple(self._running):
                task.cancel()
            await asyncio.gather(*self._running, return_exceptions=True)
            await listener.aclose()

    def _told(self, _: str | None) -> None:
        self._wake.set()

    async def _take(self) -> None:
        free = MAX_AT_ONCE - len(self._running)
        if free <= 0:
            return
        lease_ms = int((self._settings.timeout_s + SPARE_S) * 1_000)
        for delivery in await self._store.claim(token=uuid.uuid4().hex, lease_ms=lease_ms, limit=free):
            task = asyncio.create_task(self._deliver(delivery), name=f"webhook {delivery.id}")
            self._running.add(task)
            task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        self._wake.set()
        if not task.cancelled() and task.exception() is not None:
            _log.error("a webhook could not be settled; its lease will end", exc_info=task.exception())

    async def _deliver(self, delivery: Delivery) -> None:
        reason, is_final = await self._attempt(delivery)
        extra = {"delivery": delivery.id, "job_id": delivery.job_id, "attempt": delivery.attempt, "reason": reason}
        if not reason:
            metrics.WEBHOOK_DELIVERIES.labels(outcome="delivered").inc()
            await self._store.settle(delivery, "delivered")
        elif is_final or delivery.attempt >= self._settings.max_attempts:
            metrics.WEBHOOK_DELIVERIES.labels(outcome="dead").inc()
            _log.warning("a webhook was given up", extra=extra)
            await self._store.settle(delivery, "dead", reason=reason)
        else:
            metrics.WEBHOOK_DELIVERIES.labels(outcome="failed").inc()
            _log.info("a webhook was not taken; it is tried again", extra=extra)
            delay_ms = round(self._delay(delivery.attempt, random.random()) * 1_000)
            await self._store.settle(delivery, "again", delay_ms=delay_ms, reason=reason)

    async def _attempt(self, delivery: Delivery) -> tuple[str, bool]:
        """Return why the receiver did not take it ('': it did), and whether asking again is no use."""
        if origin_of(delivery.url) not in self._settings.origins:
            return "the host is not allowed any more", True
        body = body_of(delivery)
        now_s = int(time.time())
        secret = tenant_secret(self._settings.secret, delivery.tenant)
        headers = {
            "content-type": "application/json",
            "user-agent": "llmga-serve",
            "webhook-id": delivery.id,
            "webhook-timestamp": str(now_s),
            "webhook-signature": signature(secret, delivery.id, now_s, body),
        }
        try:
            status = await self._sender.post(delivery.url, headers, body)
        except RefusedAddress:
            return "the host has an address that is not allowed", False  # names change; so does what they lead to
        except Undeliverable as error:
            return str(error), False
        return ("" if 200 <= status < 300 else f"status {status}"), status == HTTPStatus.GONE


def body_of(delivery: Delivery) -> bytes:
    """Return the body of a delivery, the same in each attempt."""
    happened = datetime.fromtimestamp(delivery.time_ms / 1_000, UTC).isoformat(timespec="milliseconds")
    message = WebhookMessage(
        type=WebhookEvent(delivery.type),
        timestamp=happened.replace("+00:00", "Z"),
        data={"job_id": delivery.job_id, **json.loads(delivery.data)},
    )
    return message.model_dump_json().encode()
