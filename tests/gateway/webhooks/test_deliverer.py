"""Webhooks from a job's event to a real receiver."""

import asyncio
import base64
import hmac
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from gateway.tasks import background
from gateway.webhooks.deliverer import Deliverer, delay_s
from shared import metrics
from shared.contracts.webhooks import WebhookMessage
from shared.jobs import JobQueue
from shared.webhooks.settings import WebhookSettings
from shared.webhooks.signing import tenant_secret
from shared.webhooks.store import DeliveryStore
from tests.gateway.conftest import until
from tests.gateway.webhooks.receiver import Receiver
from tests.shared.jobs.steps import submit
from tests.shared.webhooks.promises import end_attempt_lease

SECRET = "whsec_" + base64.b64encode(b"s" * 32).decode()


def settings_for(receiver: Receiver, **more: Any) -> WebhookSettings:
    values = {"hosts": f"http://127.0.0.1:{receiver.port}", "secret": SECRET, "allow_private": True, "max_attempts": 3}
    return WebhookSettings.model_validate(values | more)


@asynccontextmanager
async def delivering(queue: JobQueue, settings: WebhookSettings) -> AsyncIterator[None]:
    """Deliver while the block runs, without waiting long between attempts."""
    deliverer = Deliverer(queue, settings, delay=lambda attempt, chance: 0.05)
    async with background(deliverer.tend()):
        yield


async def canceled_job(queue: JobQueue, url: str, tenant: str = "default") -> str:
    """Submit a job with a webhook, and end it; return its id."""
    job = await submit(queue, tenant=tenant, webhook={"url": url})
    await queue.cancel(job.id, tenant=tenant)
    return job.id


async def nothing_is_left(queue: JobQueue) -> bool:
    return not await queue.redis.zcard(DeliveryStore(queue).channel)


async def test_an_event_is_sent_signed_with_the_tenant_s_secret(queue: JobQueue) -> None:
    async with Receiver().serving() as receiver, delivering(queue, settings_for(receiver)):
        job_id = await canceled_job(queue, receiver.url, "alice")
        await until(lambda: nothing_is_left(queue))
    (request,) = receiver.received
    message = WebhookMessage.model_validate(request.message)
    assert (message.type, message.data) == ("job.canceled", {"job_id": job_id})
    sent_id, sent_s = request.headers["webhook-id"], request.headers["webhook-timestamp"]
    assert abs(time.time() - int(sent_s)) < 60
    key = base64.b64decode(tenant_secret(SECRET, "alice").removeprefix("whsec_"))
    expected = hmac.digest(key, f"{sent_id}.{sent_s}.".encode() + request.body, "sha256")
    assert request.headers["webhook-signature"] == f"v1,{base64.b64encode(expected).decode()}"
    assert request.headers["content-type"] == "application/json"


async def test_what_is_not_taken_is_sent_again_as_the_same_message(queue: JobQueue) -> None:
    async with Receiver([500, 302, 200]).serving() as receiver, delivering(queue, settings_for(receiver)):
        await canceled_job(queue, receiver.url)
        await until(lambda: nothing_is_left(queue))
    assert len(receiver.received) == 3
    assert len({(request.headers["webhook-id"], request.body) for request in receiver.received}) == 1
    assert await DeliveryStore(queue).dead_letters() == []


async def test_a_receiver_that_never_takes_it_is_given_up(queue: JobQueue) -> None:
    before = metrics.WEBHOOK_DELIVERIES.labels(outcome="dead")._value.get()
    async with Receiver([503]).serving() as receiver, delivering(queue, settings_for(receiver)):
        job_id = await canceled_job(queue, receiver.url)
        await until(lambda: nothing_is_left(queue))
    (dead,) = await DeliveryStore(queue).dead_letters()
    assert (dead.job_id, dead.attempt, dead.reason) == (job_id, 3, "status 503")
    assert len(receiver.received) == 3
    assert metrics.WEBHOOK_DELIVERIES.labels(outcome="dead")._value.get() == before + 1


async def test_a_receiver_that_is_gone_for_good_is_not_asked_again(queue: JobQueue) -> None:
    async with Receiver([410]).serving() as receiver, delivering(queue, settings_for(receiver)):
        await canceled_job(queue, receiver.url)
        await until(lambda: nothing_is_left(queue))
    assert len(receiver.received) == 1


async def test_a_host_that_is_no_longer_allowed_gets_nothing(queue: JobQueue) -> None:
    async with Receiver().serving() as receiver:
        await canceled_job(queue, receiver.url)
        async with delivering(queue, settings_for(receiver, hosts="hooks.example.com")):
            await until(lambda: nothing_is_left(queue))
    assert receiver.received == []
    (dead,) = await DeliveryStore(queue).dead_letters()
    assert dead.reason == "the host is not allowed any more"


async def test_a_private_address_gets_nothing_unless_the_operator_allows_it(queue: JobQueue) -> None:
    async with Receiver().serving() as receiver, delivering(queue, settings_for(receiver, allow_private=False)):
        await canceled_job(queue, receiver.url)
        await until(lambda: nothing_is_left(queue))
    assert receiver.received == []
    (dead,) = await DeliveryStore(queue).dead_letters()
    assert dead.reason == "the host has an address that is not allowed"


async def test_what_a_dead_gateway_was_sending_is_sent_by_another_one(queue: JobQueue) -> None:
    async with Receiver([0, 200]).serving() as receiver:
        settings = settings_for(receiver, timeout_s=60)
        await canceled_job(queue, receiver.url)
        async with delivering(queue, settings):
            await until(lambda: len(receiver.received) == 1)  # and it dies while it waits for the answer
        assert not await nothing_is_left(queue)
        await end_attempt_lease(queue, receiver.received[0].headers["webhook-id"])
        async with delivering(queue, settings):
            await until(lambda: nothing_is_left(queue))
    first, second = receiver.received
    assert first.headers["webhook-id"] == second.headers["webhook-id"]


async def test_two_gateways_send_each_event_once(queue: JobQueue) -> None:
    async with Receiver().serving() as receiver:
        settings = settings_for(receiver)
        async with delivering(queue, settings), delivering(queue, settings):
            await asyncio.gather(*(canceled_job(queue, receiver.url) for _ in range(20)))
            await until(lambda: nothing_is_left(queue))
    ids = [request.headers["webhook-id"] for request in receiver.received]
    assert len(ids) == len(set(ids)) == 20


async def test_a_slow_receiver_holds_no_other_one_back(queue: JobQueue) -> None:
    async with Receiver([0]).serving() as slow, Receiver().serving() as quick:
        hosts = f"http://127.0.0.1:{slow.port}, http://127.0.0.1:{quick.port}"
        async with delivering(queue, settings_for(slow, hosts=hosts, timeout_s=60)):
            await canceled_job(queue, slow.url)
            await until(lambda: len(slow.received) == 1)
            await canceled_job(queue, quick.url)
            await until(lambda: len(quick.received) == 1)


async def test_without_hosts_nobody_looks_for_webhooks(queue: JobQueue) -> None:
    await asyncio.wait_for(Deliverer(queue, WebhookSettings()).tend(), 5)


@pytest.mark.parametrize(("attempt", "least_s"), [(1, 5), (2, 20), (3, 80), (5, 1_280), (6, 3_600), (19, 3_600)])
def test_attempts_become_rarer_up_to_a_bound_and_are_spread(attempt: int, least_s: float) -> None:
    assert delay_s(attempt, 0) == least_s
    assert delay_s(attempt, 1) == least_s * 1.25
