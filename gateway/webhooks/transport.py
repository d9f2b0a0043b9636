"""One POST, to an address that was looked at.

The name is resolved here, every address that it has is checked, and the connection is made to one of these very
addresses: a second look-up, which may answer otherwise, never happens. TLS still verifies the name. Redirects are
answers like any other, proxies of the environment are not asked, and of the answer's body nothing is read.
"""

import asyncio
import socket
import ssl
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

import httpcore

from gateway.webhooks.addresses import is_public


class RefusedAddress(Exception):
    """The name leads to an address that webhooks may not be sent to."""


class Undeliverable(Exception):
    """There was no answer; the text says why, in our words."""


class CheckedNetwork(httpcore.AsyncNetworkBackend):
    """Connects to addresses that were checked."""

    def __init__(self, *, allow_private: bool) -> None:
        self._allow_private = allow_private
        self._network = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Connect to the first address of a name that answers, if all of them are allowed.

        Raises:
            RefusedAddress: one of them is not.
        """
        loop = asyncio.get_running_loop()
        try:
            found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise httpcore.ConnectError("the name has no address") from error
        addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
        if not self._allow_private and not all(map(is_public, addresses)):
            raise RefusedAddress
        for address in addresses[:-1]:
            with suppress(httpcore.ConnectError):
                return await self._network.connect_tcp(address, port, timeout, local_address, socket_options)
        return await self._network.connect_tcp(addresses[-1], port, timeout, local_address, socket_options)

    async def sleep(self, seconds: float) -> None:
        """Wait (`AsyncNetworkBackend.sleep`)."""
        await asyncio.sleep(seconds)


class Sender:
    """Sends bodies; no connection outlives its answer."""

    def __init__(self, *, allow_private: bool, timeout_s: float, ssl_context: ssl.SSLContext | None = None) -> None:
        self._network = CheckedNetwork(allow_private=allow_private)
        self._timeout_s = timeout_s
        self._ssl_context = ssl_context

    async def post(self, url: str, headers: Mapping[str, str], body: bytes) -> int:
        """Send a body, and return the status of the answer.

        Raises:
            RefusedAddress: the URL's host may not be sent to.
            Undeliverable: there was no answer in time.
        """
        try:
            async with (
                asyncio.timeout(self._timeout_s),
                httpcore.AsyncConnectionPool(
                    ssl_context=self._ssl_context, network_backend=self._network, max_keepalive_connections=0, retries=0
                ) as pool,
                pool.stream("POST", url, headers=list(headers.items()), content=body) as answer,
            ):
                return answer.status
        except TimeoutError:
            raise Undeliverable(f"no answer within {self._timeout_s:g} seconds") from None
        except (
            httpcore.NetworkError,
            httpcore.ProtocolError,
            httpcore.TimeoutException,
            ssl.SSLError,
            OSError,
        ) as error:
            raise Undeliverable(_reason(error)) from error


def _reason(error: Exception) -> str:
    if isinstance(error, httpcore.ConnectError | OSError):
        return "no connection"
    return "the connection broke" if isinstance(error, httpcore.NetworkError) else "the answer was no HTTP"
