"""Cancels that somebody below swallows."""

import asyncio
import contextlib

import pytest

from shared.jobs.cancellation import raise_if_canceled


async def test_swallowed_cancel_is_raised_at_the_next_turn() -> None:
    turned = asyncio.Event()

    async def loop() -> None:
        while True:
            raise_if_canceled()
            turned.set()
            with contextlib.suppress(asyncio.CancelledError):  # as asyncio.wait_for may before Python 3.12
                await asyncio.sleep(0.01)

    task = asyncio.create_task(loop())
    await turned.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_time_out_that_was_handled_is_no_cancel() -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(0):
            await asyncio.sleep(1)
    raise_if_canceled()
