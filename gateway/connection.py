"""Doing something for a client for as long as it is there."""

import asyncio
from collections.abc import Coroutine
from enum import Enum, auto
from typing import Any

from starlette.types import Receive

from gateway.drain import Drain
from gateway.tasks import end


class Ending(Enum):
    """Why `while_connected` returned."""

    DONE = auto()
    DISCONNECTED = auto()
    DRAINED = auto()


async def while_connected(work: Coroutine[Any, Any, None], receive: Receive, drain: Drain) -> Ending:
    """Run `work` to its end, or until the client leaves or this process drains; then cancel it."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_disconnect(receive))
    try:
        await asyncio.wait({working, leaving, drain.over}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            await working  # raises what it raised
            return Ending.DONE
        return Ending.DISCONNECTED if leaving.done() else Ending.DRAINED
    finally:
        await end(working, leaving)


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass  # what is left of the request's body
