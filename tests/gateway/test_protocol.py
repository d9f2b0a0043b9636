"""What comes before a request is understood is bounded, too."""

import asyncio

import pytest

from gateway import protocol
from gateway.server import GatewayServer
from shared.contracts import Problem
from tests.gateway.conftest import PATIENCE_S


async def _answer(server: GatewayServer, sent: bytes, *, ends: bool = False) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    try:
        writer.write(sent)
        if ends:
            writer.write_eof()
        async with asyncio.timeout(PATIENCE_S):
            return await reader.read()
    finally:
        writer.close()
        await writer.wait_closed()


@pytest.mark.parametrize(
    ("sent", "status", "code"),
    [
        (b"GET /livez HTTP/1.1\r\nX-A: " + b"a" * 200_000, 431, "head_too_large"),
        (b"GET /livez HTTP/1.1\r\n" + b"X-A: b\r\n" * 20_000, 431, "head_too_large"),
        (b"GET /" + b"a" * 200_000, 431, "head_too_large"),
        (b"hello?\r\n\r\n", 400, "malformed_http"),
    ],
    ids=["one header", "many headers", "address", "no HTTP"],
)
async def test_head_that_is_too_large_or_none_is_a_problem(
    gateway: GatewayServer, sent: bytes, status: int, code: str
) -> None:
    head, _, body = (await _answer(gateway, sent)).partition(b"\r\n\r\n")
    assert int(head.split()[1]) == status
    assert b"application/problem+json" in head
    problem = Problem.model_validate_json(body)
    assert (problem.status, problem.code) == (status, code)
    assert problem.instance is not None
    assert problem.instance.removeprefix("urn:llmga:request:").encode() in head


@pytest.mark.parametrize("sent", [b"", b"GET /livez HTTP/1.1\r\nX-"], ids=["silent", "slow"])
async def test_connection_that_does_not_say_what_it_wants_is_closed(
    gateway: GatewayServer, monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    monkeypatch.setattr(protocol, "HEAD_S", 0.2)
    assert await _answer(gateway, sent) == b""


async def test_requests_of_one_connection_are_bounded_one_by_one(gateway: GatewayServer) -> None:
    request = b"GET /livez HTTP/1.1\r\nHost: a\r\nX-A: " + b"a" * 30_000
    sent = (request + b"\r\n\r\n") * 4 + request + b"\r\nConnection: close\r\n\r\n"
    assert (await _answer(gateway, sent)).count(b"HTTP/1.1 200 OK") == 5
