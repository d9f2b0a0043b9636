"""The worker of `benchmarks.plumbing` and `benchmarks.overload`: claims for the render stage, makes no picture.

`python -m benchmarks.plumbing_worker`, with the settings of the environment, finishes each job at once; with
`--work-s 0.4 --capacity 8` it has so many in hand, each for so long: a device of 20 jobs/s. A job of
the batch lane is held until it is canceled.
"""

import argparse
import asyncio
import signal

import uvloop

from shared.contracts import Announcement, Lane, Phase, Scheduler, ServedModel, Stage, Task
from shared.jobs import Claim, Consumer, JobQueue, connect
from shared.settings import Settings, worker_name

CAPACITY = 64  # more than the load has connections
MODEL = ServedModel(
    name="noop",
    default=True,
    tasks=[Task.TEXT_TO_IMAGE],
    size="512x512",
    num_inference_steps=20,
    guidance_scale=7.5,
    scheduler=Scheduler.DDIM,
)


async def run(settings: Settings, work_s: float, capacity: int) -> None:
    """Work until SIGTERM."""
    name = worker_name()
    redis = await connect(settings.redis)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)

    async def finish(claim: Claim) -> None:
        if claim.job.request.lane is Lane.BATCH:
            await claim.lost.wait()
            return
        if work_s:
            await asyncio.sleep(work_s)
        await claim.finish([])

    consumer = Consumer(
        JobQueue(redis, settings.queue, settings.redis.namespace),
        settings.redis,
        stage=Stage.RENDER,
        worker=name,
        handle=finish,
        capacity=capacity,
        announcement=lambda: Announcement(worker=name, stage=Stage.RENDER, phase=Phase.READY, models=[MODEL]),
    )
    await consumer.run(stop, drain_s=1)
    await redis.aclose()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plumbing_worker")
    parser.add_argument("--work-s", type=float, default=0.0)
    parser.add_argument("--capacity", type=int, default=CAPACITY)
    arguments = parser.parse_args()
    uvloop.run(run(Settings.load(), arguments.work_s, arguments.capacity))
