"""One POST, to where it may go and nowhere else."""

import asyncio
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest

from gateway.webhooks.transport import RefusedAddress, Sender, Undeliverable
from tests.gateway.webhooks.receiver import Receiver
from tests.ports import free_port


def sender(*, allow_private: bool = True, timeout_s: float = 30.0) -> Sender:
    return Sender(allow_private=allow_private, timeout_s=timeout_s)


async def test_a_body_arrives_as_it_was_sent() -> None:
    async with Receiver().serving() as receiver:
        assert await sender().post(receiver.url, {"x-a": "b"}, b"{}") == 204
    (request,) = receiver.received
    assert (request.path, request.headers["x-a"], request.body) == ("/hook", "b", b"{}")
    assert request.headers["host"] == f"127.0.0.1:{receiver.port}"


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "0.0.0.0"])
async def test_private_addresses_are_refused_however_they_are_written(host: str) -> None:
    async with Receiver().serving() as receiver:
        with pytest.raises(RefusedAddress):
            await sender(allow_private=False).post(f"http://{host}:{receiver.port}/", {}, b"")
    assert receiver.received == []


async def test_the_connection_is_made_to_the_address_that_was_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that answers otherwise the second time (DNS rebinding) is not asked a second time."""
    loop = asyncio.get_running_loop()
    asked: list[str] = []
    real = loop.getaddrinfo

    async def getaddrinfo(host: Any, port: Any, **options: Any) -> Any:
        asked.append(str(host))
        address = "127.0.0.1" if host == "hooks.example.com" else host
        return await real(address, port, **options)

    monkeypatch.setattr(loop, "getaddrinfo", getaddrinfo)
    async with Receiver().serving() as receiver:
        assert await sender().post(f"http://hooks.example.com:{receiver.port}/", {}, b"") == 204
    assert asked.count("hooks.example.com") == 1
    assert set(asked) <= {"hooks.example.com", "127.0.0.1"}
    assert receiver.received[0].headers["host"] == f"hooks.example.com:{receiver.port}"


async def test_one_private_address_among_others_is_enough_to_refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = asyncio.get_running_loop()

    async def getaddrinfo(host: Any, port: int, **_: Any) -> Any:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in ("1.1.1.1", "10.0.0.1")]

    monkeypatch.setattr(loop, "getaddrinfo", getaddrinfo)
    with pytest.raises(RefusedAddress):
        await sender(allow_private=False).post("http://hooks.example.com/", {}, b"")


async def test_a_redirect_is_not_followed() -> None:
    async with Receiver().serving() as target:
        there = target.url.encode()
        async with Receiver([302], [(b"location", there)]).serving() as receiver:
            assert await sender().post(receiver.url, {}, b"") == 302
    assert target.received == []


async def test_a_body_without_end_is_not_read() -> None:
    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield b"x" * 65_536

    async with Receiver(body=endless).serving() as receiver:
        assert await sender().post(receiver.url, {}, b"") == 204


async def test_a_receiver_that_does_not_answer_is_left() -> None:
    async with Receiver([0]).serving() as receiver:
        with pytest.raises(Undeliverable, match=r"^no answer within 0\.2 seconds$"):
            await sender(timeout_s=0.2).post(receiver.url, {}, b"")


async def test_nobody_there_is_said_in_our_words() -> None:
    port = free_port()
    with pytest.raises(Undeliverable, match=r"^no connection$"):
        await sender().post(f"http://127.0.0.1:{port}/", {}, b"")
    with pytest.raises(Undeliverable, match=r"^no connection$"):
        await sender().post("http://nowhere.invalid/", {}, b"")


async def test_an_answer_that_is_no_http_is_said_in_our_words() -> None:
    async def babble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mail.example.com\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(babble, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(Undeliverable):
            await sender().post(f"http://127.0.0.1:{port}/", {}, b"")
