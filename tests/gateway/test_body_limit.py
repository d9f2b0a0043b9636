"""The limit on bodies, seen from the wire; what is refused and how is in `routes/test_bad_input.py`."""

import asyncio

from gateway.server import GatewayServer
from tests.gateway.conftest import PATIENCE_S, until

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
