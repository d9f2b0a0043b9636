"""Limits on bodies, before any parser sees one: of each its size and its time, and of all together their size.

A body is read here as a whole, counted byte by byte whatever `Content-Length` says, and handed on as one message.
A body that is refused is refused at once; what its sender still has under way is read and thrown away for a moment,
so that the answer is not lost to a connection that was reset.

What is read counts until the app is done with it: it has answered, or it asks whether its client is still there, which
is all that it does while a client waits for a picture.
"""

import asyncio
import time

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.problems import error_response
from shared import metrics
from shared.errors import BodyTooLarge, BodyTooSlow, LLMGAError, Overloaded

LINGER_BYTES = 8 * 1_048_576
LINGER_S = 2.0
RETRY_AFTER_S = 2  # a large body is parsed and decoded in about a second
SILENCE_S = 20.0  # between two pieces of a body
SLOWEST_BYTES_PER_S = 16_384  # on the whole, once a body has taken longer than `SILENCE_S`


class BodyBudget:
    """The bytes of all bodies that this process holds."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self.held_bytes = 0

    def take(self, count: int) -> bool:
        """Take room for so many bytes, if there is any."""
        if self.held_bytes + count > self._max_bytes:
            return False
        self._change(count)
        return True

    def give_back(self, count: int) -> None:
        """Give room back."""
        self._change(-count)

    def _change(self, count: int) -> None:
        self.held_bytes += count
        metrics.BODY_BYTES.set(self.held_bytes)


class BodyLimit:
    """ASGI middleware that refuses bodies above `max_bytes` with 413, and those that there is no room for with 503."""

    def __init__(self, app: ASGIApp, max_bytes: int, budget: BodyBudget) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._budget = budget

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Read the body within the limits, then call the app."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        held = _Held(self._budget)
        try:
            try:
                body: Message | None = await self._read(scope, receive, held)
            except LLMGAError as error:
                await _refuse(error, scope, receive, send)
                return
            if body is None:
                return  # the client left before it had said what it wants

            async def receive_body_then_rest() -> Message:
                nonlocal body
                if body is not None:
                    message, body = body, None
                    return message
                held.let_go()
                return await receive()

            await self._app(scope, receive_body_then_rest, send)
        finally:
            held.let_go()

    async def _read(self, scope: Scope, receive: Receive, held: "_Held") -> Message | None:
        declared = Headers(scope=scope).get("content-length")
        if declared is not None and declared.isdecimal() and int(declared) > self._max_bytes:
            raise self._too_large()
        chunks: list[bytes] = []
        started_s = time.monotonic()
        while True:
            try:
                async with asyncio.timeout(SILENCE_S):
                    message = await receive()
            except TimeoutError:
                raise BodyTooSlow("The body stopped coming.") from None
            if message["type"] == "http.disconnect":
                return None
            chunk = message.get("body", b"")
            if held.bytes + len(chunk) > self._max_bytes:
                raise self._too_large()
            if not held.add(len(chunk)):
                raise Overloaded(
                    "This server has as many large bodies in hand as it can hold.", retry_after_s=RETRY_AFTER_S
                )
            chunks.append(chunk)
            if not message.get("more_body", False):
                return {"type": "http.request", "body": b"".join(chunks), "more_body": False}
            taken_s = time.monotonic() - started_s
            if taken_s > SILENCE_S and held.bytes < SLOWEST_BYTES_PER_S * taken_s:
                raise BodyTooSlow("The body came too slowly.")

    def _too_large(self) -> BodyTooLarge:
        return BodyTooLarge(f"The body is larger than {self._max_bytes} bytes.")


class _Held:
    """What one request holds of the budget."""

    def __init__(self, budget: BodyBudget) -> None:
        self._budget = budget
        self.bytes = 0

    def add(self, count: int) -> bool:
        if not self._budget.take(count):
            return False
        self.bytes += count
        return True

    def let_go(self) -> None:
        self._budget.give_back(self.bytes)
        self.bytes = 0


async def _refuse(error: LLMGAError, scope: Scope, receive: Receive, send: Send) -> None:
    response = error_response(error, scope)
    headers = [*response.raw_headers, (b"connection", b"close")]
    await send({"type": "http.response.start", "status": response.status_code, "headers": headers})
    await send({"type": "http.response.body", "body": bytes(response.body), "more_body": True})
    try:
        async with asyncio.timeout(LINGER_S):
            await _discard(receive)
    except TimeoutError:
        pass
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _discard(receive: Receive) -> None:
    left = LINGER_BYTES
    while left > 0:
        message = await receive()
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            return
        left -= len(message.get("body", b""))
