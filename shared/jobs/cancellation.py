"""Cancels that got lost.

Before Python 3.12 `asyncio.wait_for` returns its result when a cancel comes at the same moment, and the Redis client
uses it for every command. The task still counts the cancel, so an endless loop asks for it at each turn.
"""

import asyncio


def raise_if_canceled() -> None:
    """Raise CancelledError when the current task was canceled and somebody below swallowed it."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError
