"""Threads that end with their work."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar, TypeVarTuple

Result = TypeVar("Result")
Arguments = TypeVarTuple("Arguments")


async def in_own_thread(work: Callable[[*Arguments], Result], *arguments: *Arguments) -> Result:
    """Run something that computes with torch in a thread of its own, which is gone afterwards.

    A thread that has computed keeps a team of OpenMP's threads. While there are more of them than cores, OpenMP lets
    the teams at work wait asleep only, and a call of the UNet on a CPU takes up to twice as long.
    """
    thread = ThreadPoolExecutor(1, thread_name_prefix="llmga-own")
    running = asyncio.get_running_loop().run_in_executor(thread, work, *arguments)
    thread.shutdown(wait=False)  # it ends behind its only work, for which a canceled caller does not wait
    return await running
