"""Tasks that end when they are told to.

On Python 3.11 `asyncio.wait_for` loses a cancel that comes in the very turn in which the awaited future is done, and
the Redis client sends every command through it. So a task is canceled until it has ended.
"""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

AGAIN_S = 1.0  # longer than any clean-up takes, which a second cancel would cut off


async def end(*tasks: asyncio.Future[Any]) -> None:
    """Cancel the tasks and return when all have ended; what they raise is dropped."""
    waiting = {task for task in tasks if not task.done()}
    while waiting:
        for task in waiting:
            task.cancel()
        _, waiting = await asyncio.wait(waiting, timeout=AGAIN_S)
    for task in tasks:
        if not task.cancelled():
            task.exception()  # seen


@asynccontextmanager
async def background(*work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run the coroutines beside the block, and end them with it."""
    tasks = [asyncio.create_task(one) for one in work]
    try:
        yield
    finally:
        await end(*tasks)
