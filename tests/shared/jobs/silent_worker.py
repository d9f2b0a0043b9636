"""A worker in a process of its own, for tests that stop it: claims one job, then ends it when told to.

`python -m tests.shared.jobs.silent_worker URL NAMESPACE LEASE_MS` prints `claimed`, waits for a line, tries to finish,
and prints `finished` or the name of the error.
"""

import asyncio
import sys
import time

from shared.contracts import Stage
from shared.jobs import JobQueue, LeaseKeeper, LeaseLost, connect
from shared.settings import QueueSettings, RedisSettings


async def work(url: str, namespace: str, lease_ms: int) -> None:
    """Claim, wait, finish."""
    settings = RedisSettings(url=url, namespace=namespace)
    redis = await connect(settings)
    queue = JobQueue(redis, QueueSettings(lease_ms=lease_ms), namespace)
    keeper = LeaseKeeper(queue, settings)
    keeper.start()
    claimed_at = time.monotonic()
    claim = await queue.claim(Stage.RENDER, worker="silent")
    assert claim is not None
    keeper.hold(claim, claimed_at)
    sys.stdout.write("claimed\n")
    sys.stdout.flush()
    await asyncio.to_thread(sys.stdin.readline)
    try:
        await claim.finish([])
        outcome = "finished"
    except LeaseLost as error:
        outcome = type(error).__name__
    sys.stdout.write(f"{outcome}\n")
    sys.stdout.flush()
    keeper.close()
    await redis.aclose()


if __name__ == "__main__":
    asyncio.run(work(sys.argv[1], sys.argv[2], int(sys.argv[3])))
