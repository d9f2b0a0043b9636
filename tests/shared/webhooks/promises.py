"""What deliveries promise, each as a function that asserts it."""

from collections.abc import Awaitable, Callable
from typing import Any

from shared.contracts import EventType, Stage
from shared.jobs import JobQueue
from shared.webhooks.store import Delivery, DeliveryStore
from tests.shared.jobs.steps import claim, image, prompt, submit

URL = "https://hooks.example.com/x"
LEASE_MS = 60_000

Promise = Callable[[JobQueue, DeliveryStore], Awaitable[None]]


async def due(store: DeliveryStore, token: str = "t", limit: int = 100) -> list[Delivery]:
    """Take all that is due."""
    return await store.claim(token=token, lease_ms=LEASE_MS, limit=limit)


async def end_attempt_lease(queue: JobQueue, delivery_id: str) -> None:
    """Make whoever has a delivery silent for longer than its lease."""
    changed = await queue.redis.zadd(f"{queue.scripts.base}deliveries", {delivery_id: 1}, xx=True, ch=True)
    assert changed == 1


async def finished_job(queue: JobQueue, **webhook: Any) -> str:
    """Take a job with a webhook through both stages; return its id."""
    job = await submit(queue, stage=Stage.PROMPT, webhook={"url": URL, **webhook})
    await (await claim(queue, Stage.PROMPT)).advance(prompt())
    rendering = await claim(queue)
    await rendering.emit(EventType.IMAGE_COMPLETED, {"image": image().model_dump(mode="json")})
    await rendering.finish([image()])
    return job.id


async def wanted_events_are_sent_and_no_others(queue: JobQueue) -> None:
    """A job's end is sent, and of the rest what was asked for."""
    await finished_job(queue)
    store = DeliveryStore(queue)
    assert [delivery.type for delivery in await due(store)] == ["job.succeeded"]


async def delivery_is_handed_out_once_per_lease(queue: JobQueue, store: DeliveryStore) -> None:
    """Two gateways do not send the same, unless the first one falls silent."""
    await finished_job(queue)
    (first,) = await due(store, "one")
    assert await due(store, "two") == []
    await end_attempt_lease(queue, first.id)
    (again,) = await due(store, "two")
    assert (again.id, again.attempt) == (first.id, 2)


async def late_word_changes_nothing(queue: JobQueue, store: DeliveryStore) -> None:
    """A gateway that was too slow neither ends nor delays what another one has taken over."""
    await finished_job(queue)
    (late,) = await due(store, "one")
    await end_attempt_lease(queue, late.id)
    (current,) = await due(store, "two")
    assert not await store.settle(late, "dead")
    assert await store.settle(current, "delivered")


DELIVERY_PROMISES: dict[str, Promise] = {
    "lease of a delivery": delivery_is_handed_out_once_per_lease,
    "token of a delivery": late_word_changes_nothing,
}
