"""What strangers send: no crash, a clear problem, and everything else goes on."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress

import httpx
import pytest

from gateway import fleet
from shared.contracts import OpenAIErrorEnvelope, Problem
from shared.media import decode_image
from shared.settings import GatewaySettings
from tests.gateway.conftest import PATIENCE_S, House
from tests.gateway.hostile.bodies import Body, bodies
from tests.gateway.hostile.pictures import pictures

LIBRARIES = (
    "pydantic",
    "Traceback",
    "PIL",
    "Pillow",
    "json.decoder",
    "fastapi",
    "starlette",
    "multipart.",
    "site-packages",
)
AT_ONCE = 4


@pytest.fixture
def gateway_settings() -> GatewaySettings:
    """Return the settings of a gateway that takes bodies of 2 MiB."""
    return GatewaySettings(metrics_port=0, max_body_bytes=2 * 1_048_576)


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nobody be told on a busy machine that the queue is gone, when it is late."""
    monkeypatch.setattr(fleet, "STALE_S", PATIENCE_S)


def _is_clear(response: httpx.Response) -> bool:
    """Whether an answer says what is wrong and what to do, in words of ours."""
    assert not [library for library in LIBRARIES if library in response.text], response.text
    assert len(response.content) < 20_000
    if response.headers["content-type"] == "application/problem+json":
        problem = Problem.model_validate(response.json())
        return bool(problem.detail and problem.next_step) and problem.status == response.status_code
    return bool(OpenAIErrorEnvelope.model_validate(response.json()).error.message)


async def test_hostile_pictures_are_refused_with_their_reason_or_made_plain(house: House) -> None:
    corpus = list(pictures())
    assert len(corpus) >= 100
    wrong = []
    for sent in corpus:
        response = await house.http.post("/v1/images", content=sent.data, headers={"Content-Type": sent.media_type})
        expected = {201} if sent.is_taken else {413, 422}
        if response.status_code not in expected or (response.status_code != 201 and not _is_clear(response)):
            wrong.append(f"{sent.name}: {response.status_code} {response.text[:300]}")
        if response.status_code == 201 and len(sent.data) < 10_000:
            kept = (await house.http.get(response.json()["url"])).content
            assert kept.startswith(b"\x89PNG")
            assert b"<script>" not in kept
            assert decode_image(kept).shape[:2] == (response.json()["height"], response.json()["width"])
    assert not wrong, "\n".join(wrong)
    assert (await house.http.get("/readyz")).status_code == 200


async def test_hostile_bodies_get_clear_problems(house: House) -> None:
    corpus = list(bodies())
    assert len(corpus) >= 100
    slots, wrong = asyncio.Semaphore(AT_ONCE), []

    async def send(body: Body) -> None:
        headers = dict(body.headers)
        if body.media_type is not None:
            headers["Content-Type"] = body.media_type
        async with slots:
            response = await house.http.post(body.path, content=body.data, headers=headers)
        if response.status_code not in body.statuses or (response.status_code >= 400 and not _is_clear(response)):
            wrong.append(f"{body.name}: {response.status_code} {response.text[:300]}")

    await asyncio.gather(*(send(body) for body in corpus))
    assert not wrong, "\n".join(wrong)
    assert (await house.http.get("/readyz")).status_code == 200


@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/9.9\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"POST /v1/generations HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
        b"POST /v1/generations HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /v1/generations HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"POST /v1/generations HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\nx",
        b"GET /livez HTTP/1.1\r\nHost: a\r\nX-A: " + b"a" * 200_000 + b"\r\n\r\n",
        b"GET /v1/jobs/%2e%2e%2f%00 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
        b"\0" * 4_096,
    ],
    ids=lambda sent: repr(sent[:40]),
)
async def test_what_is_not_http_harms_nobody(house: House, sent: bytes) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", house.server.port)
    try:
        writer.write(sent)
        writer.write_eof()
        async with asyncio.timeout(PATIENCE_S):
            line = await reader.readline()
    except ConnectionError:
        line = b""
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()
    assert not line or line.split()[1] in {b"400", b"404", b"431"}
    assert (await house.http.get("/livez")).status_code == 200


async def test_chunks_of_one_byte_are_a_body_like_any_other(house: House) -> None:
    async def bytes_of(text: bytes) -> AsyncIterator[bytes]:
        for byte in text:
            yield bytes([byte])

    headers = {"Content-Type": "application/json"}
    answer = await house.http.post("/v1/generations", content=bytes_of(b'{"instruction": "a house"}'), headers=headers)
    assert answer.status_code == 202
