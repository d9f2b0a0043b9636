"""Deliveries in a real queue."""

import json
import re

import pytest

from shared.contracts import Stage
from shared.jobs import JobQueue
from shared.webhooks.store import DeliveryStore, load_sources
from tests.shared.jobs.steps import claim, end_lease, submit
from tests.shared.webhooks.promises import DELIVERY_PROMISES, URL, due, finished_job
from tests.valkey import Server, forget_namespace


def test_every_marked_safeguard_has_a_promise() -> None:
    marked = {name for text in load_sources().values() for name in re.findall(r"-- safeguard: (.+)$", text, re.M)}
    assert marked == set(DELIVERY_PROMISES)


@pytest.mark.parametrize("safeguard", DELIVERY_PROMISES)
async def test_promise_holds(safeguard: str, queue: JobQueue) -> None:
    await DELIVERY_PROMISES[safeguard](queue, DeliveryStore(queue))


@pytest.mark.parametrize("safeguard", DELIVERY_PROMISES)
async def test_promise_is_broken_without_its_safeguard(safeguard: str, queue: JobQueue, valkey: Server) -> None:
    unguarded = {
        name: "\n".join(line for line in text.split("\n") if not line.endswith(f"-- safeguard: {safeguard}"))
        for name, text in load_sources().items()
    }
    assert unguarded != load_sources()
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        await DELIVERY_PROMISES[safeguard](queue, DeliveryStore(queue, sources=unguarded))
    with valkey.client() as client:
        forget_namespace(client, queue.scripts.base[1:-2])


async def test_every_event_of_a_webhook_is_sent_in_order(queue: JobQueue) -> None:
    events = ["job.queued", "job.started", "prompt.completed", "image.completed", "job.succeeded"]
    job_id = await finished_job(queue, events=events)
    sent = await due(DeliveryStore(queue))
    assert [delivery.type for delivery in sent] == [
        *["job.queued", "job.started", "prompt.completed", "job.queued", "job.started"],
        *["image.completed", "job.succeeded"],
    ]
    assert {(delivery.job_id, delivery.url, delivery.attempt) for delivery in sent} == {(job_id, URL, 1)}
    assert len({delivery.id for delivery in sent}) == len(sent)
    assert all(re.fullmatch(rf"msg_{job_id}_\d+-\d+", delivery.id) for delivery in sent)
    assert json.loads(sent[-1].data)["images"][0]["index"] == 0


async def test_a_job_without_a_webhook_sends_nothing(queue: JobQueue) -> None:
    await submit(queue, "j1")
    await queue.cancel("j1")
    assert await due(DeliveryStore(queue)) == []


@pytest.mark.parametrize("end", ["cancel", "fail"])
async def test_other_ends_are_sent_too(queue: JobQueue, end: str) -> None:
    job = await submit(queue, webhook={"url": URL})
    if end == "cancel":
        await queue.cancel(job.id)
    else:
        for _ in range(queue.settings.max_attempts):
            await claim(queue, Stage.RENDER)
            await end_lease(queue, job.id)
            await queue.reap()
    (delivery,) = await due(DeliveryStore(queue))
    assert delivery.type == f"job.{'canceled' if end == 'cancel' else 'failed'}"


async def test_a_delivery_comes_again_after_its_delay_and_not_before(queue: JobQueue) -> None:
    await finished_job(queue)
    store = DeliveryStore(queue)
    (delivery,) = await due(store)
    assert await store.settle(delivery, "again", delay_ms=50_000, reason="status 500")
    assert await due(store) == []
    score = await queue.redis.zscore(store.channel, delivery.id)
    seconds, _ = await queue.redis.time()
    assert score is not None
    assert 0 < score / 1_000 - seconds <= 51


async def test_what_was_given_up_is_kept_and_can_be_tried_anew(queue: JobQueue) -> None:
    await finished_job(queue)
    store = DeliveryStore(queue)
    (delivery,) = await due(store)
    await store.settle(delivery, "dead", reason="status 410")
    assert await due(store) == []
    (dead,) = await store.dead_letters()
    assert (dead.id, dead.reason, dead.attempt) == (delivery.id, "status 410", 1)
    assert await store.replay(delivery.id)
    assert not await store.replay(delivery.id)
    (again,) = await due(store)
    assert (again.id, again.attempt, again.reason) == (delivery.id, 1, "")


async def test_a_delivery_that_has_expired_is_forgotten(queue: JobQueue) -> None:
    await finished_job(queue)
    store = DeliveryStore(queue)
    base = queue.scripts.base
    async for key in queue.redis.scan_iter(f"[{{]{base[1:]}delivery:*"):
        await queue.redis.delete(key)  # as its retention would
    assert await due(store) == []
    assert await queue.redis.zcard(store.channel) == 0
