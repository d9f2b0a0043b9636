"""The worker of `benchmarks.plumbing`: claims for the render stage and finishes at once, without a picture.

`python -m benchmarks.plumbing_worker`, with the settings of the environment.
"""

import asyncio
import signal

import uvloop

from shared.contracts import Announcement, Phase, Scheduler, ServedModel, Stage, Task
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


async def run(settings: Settings) -> None:
    """Work until SIGTERM."""
    name = worker_name()
    redis = await connect(settings.redis)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)

    async def finish(claim: Claim) -> None:
        await claim.finish([])

    consumer = Consumer(
        JobQueue(redis, settings.queue, settings.redis.namespace),
        settings.redis,
        stage=Stage.RENDER,
        worker=name,
        handle=finish,
        capacity=CAPACITY,
        announcement=lambda: Announcement(worker=name, stage=Stage.RENDER, phase=Phase.READY, models=[MODEL]),
    )
    await consumer.run(stop, drain_s=1)
    await redis.aclose()


if __name__ == "__main__":
    uvloop.run(run(Settings.load()))
