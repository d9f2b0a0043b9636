"""The limit on bodies, seen from the wire; what is refused and how is in `routes/test_bad_input.py`."""

import asyncio
from contextlib import suppress

import pytest

from gateway import body_limit
from gateway.body_limit import BodyBudget
from gateway.server import GatewayServer
from tests.gateway.conftest import PATIENCE_S, House, until

HEAD = b"POST /v1/generations HTTP/1.1\r\nHost: gateway\r\nContent-Type: application/json\r\n"


async def _first_line(server: GatewayServer, *sent: bytes) -> bytes:
    """Return the first line that comes back for what was sent; the connection stays open for writing."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    try:
        writer.writelines(sent)
        async with asyncio.timeout(PATIENCE_S):
            return await reader.readline()
    finally:
        writer.close()
        await writer.wait_closed()


async def test_declared_length_above_the_limit_is_refused_before_the_body_is_asked_for(gateway: GatewayServer) -> None:
    line = await _first_line(gateway, HEAD, b"Content-Length: 99999999\r\nExpect: 100-continue\r\n\r\n")
    assert line.startswith(b"HTTP/1.1 413 ")


async def test_endless_body_is_refused_while_it_is_still_sent(gateway: GatewayServer) -> None:
    chunk = b"10000\r\n" + b"x" * 65_536 + b"\r\n"
    line = await _first_line(gateway, HEAD, b"Transfer-Encoding: chunked\r\n\r\n", *[chunk] * 20)
    assert line.startswith(b"HTTP/1.1 413 ")


async def test_client_that_leaves_in_the_middle_of_its_body_leaves_nothing_behind(gateway: GatewayServer) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    writer.write(HEAD + b"Content-Length: 100\r\n\r\n{")
    await writer.drain()
    await until(lambda: bool(gateway.server_state.tasks))
    writer.close()
    await writer.wait_closed()
    await until(lambda: not gateway.server_state.tasks)
    assert await reader.read() == b""


def _budget(server: GatewayServer) -> BodyBudget:
    budget = server.app.user_middleware[-1].kwargs["budget"]
    assert isinstance(budget, BodyBudget)
    return budget


async def test_bodies_above_what_is_held_in_all_are_refused_until_others_are_done(
    gateway: GatewayServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    budget = _budget(gateway)
    monkeypatch.setattr(budget, "_max_bytes", 100_000)
    waiting = await asyncio.open_connection("127.0.0.1", gateway.port)
    waiting[1].write(HEAD + b"Content-Length: 90001\r\n\r\n" + b"{" * 90_000)
    await until(lambda: budget.held_bytes == 90_000)
    body = HEAD + b"Content-Length: 20000\r\n\r\n" + b"{" * 20_000
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    writer.write(body)
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 503 ")
    assert b"retry-after: 2" in head.lower()
    writer.close()
    await writer.wait_closed()
    waiting[1].close()
    await waiting[1].wait_closed()
    await until(lambda: budget.held_bytes == 0)
    assert (await _first_line(gateway, body)).startswith(b"HTTP/1.1 400 ")
    await until(lambda: budget.held_bytes == 0)


async def test_body_of_a_call_that_waits_is_not_held(house: House) -> None:
    house.prompt.gate.clear()
    budget = _budget(house.server)
    body = {"instruction": "a red house"}
    call = asyncio.create_task(house.http.post("/v1/generations", json=body, headers={"Prefer": "wait=60"}))
    await until(lambda: bool(house.prompt.claims) and budget.held_bytes == 0)
    house.prompt.gate.set()
    assert (await call).status_code == 200


@pytest.mark.parametrize("slowest", [1, 10**9], ids=["silence", "trickle"])
async def test_body_that_does_not_come_is_refused(
    gateway: GatewayServer, monkeypatch: pytest.MonkeyPatch, slowest: int
) -> None:
    monkeypatch.setattr(body_limit, "SILENCE_S", 0.2)
    monkeypatch.setattr(body_limit, "SLOWEST_BYTES_PER_S", slowest)
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    writer.write(HEAD + b"Content-Length: 100000\r\n\r\n{")
    if slowest > 1:

        async def trickle() -> None:
            while not reader.at_eof():
                writer.write(b"{")
                await asyncio.sleep(0.05)

        trickling = asyncio.create_task(trickle())
    assert (await reader.readline()).startswith(b"HTTP/1.1 408 ")
    if slowest > 1:
        trickling.cancel()
    writer.close()
    with suppress(ConnectionError):
        await writer.wait_closed()
