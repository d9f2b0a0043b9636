"""Doing something for a client for as long as it is there."""

import asyncio
from collections.abc import Coroutine
from enum import Enum, auto
from typing import Any

from starlette.types import Receive

from gateway.drain import Drain


class Ending(Enum):
    """Why `while_connected` returned."""

    DONE = auto()
    DISCONNECTED = auto()
    DRAINED = auto()


async def while_connected(work: Coroutine[Any, Any, None], receive: Receive, drain: Drain) -> Ending:
    """Run `work` to its end, or until the client leaves or this process drains; then cancel it.

    The request's body must have been read: the next message of `receive` is the disconnect.
    """
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(receive())
    draining = asyncio.ensure_future(drain.over.wait())
    tasks: set[asyncio.Future[Any]] = {working, leaving, draining}
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            await working  # raises what it raised
            return Ending.DONE
        return Ending.DISCONNECTED if leaving.done() else Ending.DRAINED
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
