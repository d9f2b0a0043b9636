"""Refusals as OpenAI's clients see them: the envelope, and so the proper exception of the Python client."""

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import (
    APIStatusError,
    AsyncOpenAI,
    AuthenticationError,
    BadRequestError,
    InternalServerError,
    NotFoundError,
    RateLimitError,
    UnprocessableEntityError,
)

from gateway.problems import OPENAI_PATHS
from gateway.server import GatewayServer
from shared.contracts import OpenAIErrorEnvelope, Problem
from shared.settings import QueueSettings, Settings
from tests.gateway.conftest import House, serving
from tests.gateway.openai.conftest import client_of
from tests.gateway.tenants import new_key, with_keys

JSON = {"Content-Type": "application/json"}

FIELDS: list[tuple[dict[str, Any], str | None, str]] = [
    ({"n": 0}, "n", "must be at least 1"),
    ({"n": 9}, "n", "must be at most 8"),
    ({"size": "16x16"}, "size", "both sides must be"),
    ({"size": "1024x1024"}, "size", "at most 256 pixels"),
    ({"prompt": " "}, "prompt", "at least one visible character"),
    ({"background": "transparent"}, "background", "must be one of auto, opaque"),
    ({"quality": "superb"}, "quality", "must be one of auto, low"),
    ({"output_format": "gif"}, "output_format", "must be one of png, jpeg, webp"),
    ({"output_compression": 50}, None, "is for 'jpeg' and 'webp'"),
    ({"stream": True, "partial_images": 4}, "partial_images", "must be at most 3"),
    ({"extra_body": {"seed": -1}}, "seed", "must be at least 0"),
    ({"extra_body": {"sead": 1}}, "sead", "did you mean `seed`?"),
    ({"extra_body": {"task": "prompt"}}, "task", "is not a field of this call"),
    ({"style": "vivid"}, "style", "is not a field of this request"),
]


def envelope_of(answer: httpx.Response) -> Any:
    """Return the error of an answer that holds nothing else."""
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-request-id"]
    assert "pydantic" not in answer.text
    return OpenAIErrorEnvelope.model_validate(answer.json()).error


async def test_bad_fields_are_bad_requests_that_name_them(house: House, openai: AsyncOpenAI) -> None:
    for fields, param, words in FIELDS:
        with pytest.raises(BadRequestError) as refused:
            await openai.images.generate(**{"prompt": "a red house", **fields})
        error = refused.value
        assert words in error.message
        assert (error.param, error.type, error.code) == (param, "invalid_request_error", "invalid_request")
    assert await house.is_empty()


async def test_model_that_is_not_served_is_not_found(openai: AsyncOpenAI) -> None:
    with pytest.raises(NotFoundError, match="Served are: painter") as refused:
        await openai.images.generate(prompt="a", model="gpt-image-2")
    assert refused.value.code == "model_not_found"
    assert refused.value.request_id
    with pytest.raises(NotFoundError) as missing:
        await openai.models.retrieve("gpt-5")
    assert (missing.value.code, missing.value.type) == ("not_found", "invalid_request_error")


async def test_models_are_listed_and_found(openai: AsyncOpenAI) -> None:
    models = {model.id: model async for model in openai.models.list()}
    assert set(models) == {"painter", "writer"}
    assert models["painter"].object == "model"
    assert models["painter"].owned_by == "llmga-serve"
    found = await openai.models.retrieve("painter")
    assert found == models["painter"]
    assert found.model_extra is not None
    assert found.model_extra["size"] == "128x128"  # ours, beside OpenAI's fields


async def test_every_call_answers_in_the_envelope_whatever_is_wrong(house: House) -> None:
    for path in OPENAI_PATHS:
        plain = await house.http.post(path, content=b"hello", headers={"Content-Type": "text/plain"})
        assert (plain.status_code, envelope_of(plain).code) == (415, "unsupported_media_type")
        method = await house.http.delete(path)
        assert (method.status_code, envelope_of(method).code) == (405, "method_not_allowed")
        large = await house.http.post(path, content=b" " * 2_000_000, headers=JSON)
        assert (large.status_code, envelope_of(large).code) == (413, "body_too_large")
    for path in ("/v1/images/generations", "/v1/chat/completions"):
        broken = await house.http.post(path, content=b"{", headers=JSON)
        assert (broken.status_code, envelope_of(broken).code) == (400, "malformed_json")


async def test_native_calls_keep_their_problems(house: House) -> None:
    answer = await house.http.post("/v1/generations", content=b"{", headers=JSON)
    assert answer.headers["content-type"] == "application/problem+json"
    assert Problem.model_validate(answer.json()).error is None
    shared = await house.http.get("/v1/models/gpt-5")
    assert shared.headers["content-type"] == "application/problem+json"
    problem = Problem.model_validate(shared.json())
    assert problem.error is not None
    assert problem.error.code == problem.code == "not_found"


async def test_body_above_the_limit_is_an_error_of_its_status(openai: AsyncOpenAI) -> None:
    with pytest.raises(APIStatusError) as refused:
        await openai.images.generate(prompt="x" * 2_000_000)
    assert (refused.value.status_code, refused.value.code) == (413, "body_too_large")


async def test_other_body_under_a_known_key_cannot_be_processed(openai: AsyncOpenAI) -> None:
    keyed = {"Idempotency-Key": "order-1"}
    await openai.images.generate(prompt="a", extra_headers=keyed)
    with pytest.raises(UnprocessableEntityError) as refused:
        await openai.images.generate(prompt="b", extra_headers=keyed)
    assert refused.value.code == "idempotency_conflict"


async def test_without_workers_the_service_is_unavailable(gateway: GatewayServer) -> None:
    async with client_of(f"http://127.0.0.1:{gateway.port}") as client:
        with pytest.raises(InternalServerError) as refused:
            await client.images.generate(prompt="a")
    assert (refused.value.status_code, refused.value.code, refused.value.type) == (503, "no_worker", "server_error")
    assert refused.value.response.headers["retry-after"]


async def test_call_without_a_good_key_is_an_authentication_error(settings: Settings, tmp_path: Path) -> None:
    key = new_key(tmp_path, "alice")
    async with serving(with_keys(settings)) as server:
        url = f"http://127.0.0.1:{server.port}"
        async with client_of(url, key="llmga_nobody") as stranger:
            for call in (stranger.images.generate(prompt="a"), stranger.models.retrieve("painter")):
                with pytest.raises(AuthenticationError) as refused:
                    await call
                assert refused.value.type == "authentication_error"
        async with client_of(url, key=key) as alice:
            assert [model async for model in alice.models.list()] == []


class TestFullQueue:
    """With room for one job that waits."""

    @pytest.fixture
    def queue_settings(self) -> QueueSettings:
        """Return settings of a queue with one place."""
        return QueueSettings(max_queued=1)

    async def test_full_queue_is_a_rate_limit_with_its_time(self, house: House, openai: AsyncOpenAI) -> None:
        await house.fill()
        with pytest.raises(RateLimitError) as refused:
            await openai.images.generate(prompt="a")
        assert (refused.value.code, refused.value.type) == ("queue_full", "rate_limit_error")
        assert int(refused.value.response.headers["retry-after"]) > 0


async def test_unexpected_fault_is_a_server_error_in_the_envelope(
    house: House, openai: AsyncOpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def breaks(*_: object, **__: object) -> None:
        raise RuntimeError("a secret of ours")

    monkeypatch.setattr(house.server.backend.queue, "submit", breaks)
    with pytest.raises(InternalServerError) as refused:
        await openai.images.generate(prompt="a")
    assert (refused.value.status_code, refused.value.code) == (500, "internal_error")
    assert "secret" not in json.dumps(refused.value.body)
