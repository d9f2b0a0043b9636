"""Reading a request's body within a bound, and noticing that its sender has left."""

import asyncio
import json
from collections.abc import Awaitable
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request

from shared.errors import BodyTooLarge, MalformedJSON, UnsupportedMediaType

T = TypeVar("T")


async def read_json(request: Request, *, max_bytes: int) -> Any:
    """Return the body's JSON value.

    Raises:
        UnsupportedMediaType: it is not declared as JSON.
        BodyTooLarge: it has more than `max_bytes`.
        MalformedJSON: it is something else.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise UnsupportedMediaType("The body is not declared as JSON.")
    body = bytearray()
    async for block in request.stream():
        body += block
        if len(body) > max_bytes:
            raise BodyTooLarge(f"The body has more than {max_bytes} bytes.")
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        raise MalformedJSON("The body is not JSON.") from None


async def unless_gone(request: Request, work: Awaitable[T]) -> T:
    """Await the work, and cancel it when the client leaves first.

    Raises:
        ClientDisconnect: the client has left.
    """

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working = asyncio.ensure_future(work)
    leaving = asyncio.create_task(gone())
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)
