"""Webhooks over HTTP: what a tenant is told, and what is refused."""

import base64
from collections.abc import Iterator

import pytest

from shared.contracts.webhooks import WebhookTerms, origin_of
from shared.settings import Settings
from shared.webhooks.settings import WebhookSettings
from tests.gateway.conftest import House, until
from tests.gateway.webhooks.receiver import Receiver

SECRET = "whsec_" + base64.b64encode(b"s" * 32).decode()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """Yield a receiver that has a port, and does not answer yet."""
    made = Receiver()
    with made.listen():
        yield made


@pytest.fixture
def settings(settings: Settings, receiver: Receiver) -> Settings:
    """Return the settings of a gateway that may send to the receiver."""
    hosts = f"hooks.example.com, http://127.0.0.1:{receiver.port}"
    webhooks = WebhookSettings(hosts=hosts, secret=SECRET, allow_private=True)
    return settings.model_copy(update={"webhooks": webhooks})


async def test_a_job_s_events_are_sent_to_its_webhook(house: House, receiver: Receiver) -> None:
    async with receiver.serving():
        job = await house.submit(webhook={"url": receiver.url, "events": ["prompt.completed", "job.succeeded"]})
        await until(lambda: len(receiver.received) == 2)
    first, last = sorted((request.message for request in receiver.received), key=lambda message: message["timestamp"])
    assert (first["type"], last["type"]) == ("prompt.completed", "job.succeeded")
    assert last["data"]["job_id"] == job.id
    assert last["data"]["images"] == [image.model_dump(mode="json") for image in (await house.job(job.id)).images]


async def test_a_tenant_is_told_where_webhooks_may_go_and_its_secret(house: House, receiver: Receiver) -> None:
    terms = WebhookTerms.model_validate((await house.http.get("/v1/webhooks")).json())
    assert terms.origins == [f"http://127.0.0.1:{receiver.port}", "https://hooks.example.com:443"]
    assert terms.secret is not None
    assert terms.secret != SECRET


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("https://elsewhere.example.com/x", "not_offered"),
        ("http://hooks.example.com/x", "not_offered"),
        ("https://hooks.example.com:8443/x", "not_offered"),
        ("https://hooks.example.com.evil.example/x", "not_offered"),
        ("https://user@hooks.example.com/x", "not_a_url"),
        ("ftp://hooks.example.com/x", "not_a_url"),
        ("hooks.example.com", "not_a_url"),
        ("https://hooks.example.com\\@evil.example/", "not_a_url"),
        ("https:// /", "not_a_url"),
        ("https://[::1/", "not_a_url"),
    ],
)
async def test_other_places_are_refused(house: House, url: str, code: str) -> None:
    answer = await house.http.post("/v1/generations", json={"instruction": "a house", "webhook": {"url": url}})
    assert answer.status_code == 422
    assert [(problem["field"], problem["code"]) for problem in answer.json()["errors"]] == [("webhook.url", code)]
    assert await house.is_empty()


@pytest.mark.parametrize("events", [[], ["prompt.delta"], ["nothing"]])
async def test_events_that_are_not_sent_are_refused(house: House, events: list[str]) -> None:
    webhook = {"url": "https://hooks.example.com/x", "events": events}
    answer = await house.http.post("/v1/generations", json={"instruction": "a house", "webhook": webhook})
    assert answer.status_code == 422


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("https://Hooks.Example.com/x?y=1", "https://hooks.example.com:443"),
        ("http://10.0.0.5:8080", "http://10.0.0.5:8080"),
        ("https://[2606:4700::1]/x", "https://[2606:4700::1]:443"),
    ],
)
def test_an_origin_has_one_form(url: str, origin: str) -> None:
    assert origin_of(url) == origin


class TestWithoutWebhooks:
    """As a server is by default."""

    @pytest.fixture
    def settings(self, settings: Settings) -> Settings:
        """Return the settings of a gateway that sends none."""
        return settings.model_copy(update={"webhooks": WebhookSettings()})

    async def test_a_webhook_is_refused_and_there_is_no_secret(self, house: House, receiver: Receiver) -> None:
        assert (await house.http.get("/v1/webhooks")).json() == {"origins": []}
        body = {"instruction": "a house", "webhook": {"url": receiver.url}}
        assert (await house.http.post("/v1/generations", json=body)).status_code == 422
