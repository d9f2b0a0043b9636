"""Threads that are gone when their work is done."""

import asyncio
import threading

import pytest

from services.diffusion.threads import in_own_thread


async def test_thread_ends_with_its_work() -> None:
    thread = await in_own_thread(threading.current_thread)
    thread.join(timeout=10)
    assert not thread.is_alive()
    assert thread is not await in_own_thread(threading.current_thread)


async def test_arguments_go_in_and_errors_come_out() -> None:
    assert await in_own_thread(divmod, 7, 2) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        await in_own_thread(divmod, 7, 0)


async def test_a_canceled_caller_does_not_wait() -> None:
    go_on = threading.Event()
    waiting = asyncio.create_task(in_own_thread(go_on.wait, 60))
    await asyncio.sleep(0)
    waiting.cancel()
    try:
        async with asyncio.timeout(10):
            with pytest.raises(asyncio.CancelledError):
                await waiting
    finally:
        go_on.set()
