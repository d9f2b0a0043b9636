"""Jobs for the prompt stage, and what became of them."""

import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from shared.contracts import Event, GenerationRequest, Job, Stage, Task
from shared.jobs import DEFAULT_TENANT, EventFollower, JobQueue, connect
from shared.settings import QueueSettings, RedisSettings
from tests.services.mllm.running import RunningService


class Jobs:
    """The gateway's part, for one namespace."""

    def __init__(self, queue: JobQueue, follower: EventFollower) -> None:
        self.queue = queue
        self._follower = follower

    async def submit(self, **request: Any) -> str:
        """Submit a job of task `prompt`, unless told otherwise; return its id."""
        job_id = uuid.uuid4().hex
        await self.queue.submit(
            GenerationRequest.model_validate({"task": Task.PROMPT, **request}),
            job_id=job_id,
            stage=Stage.PROMPT,
            batch_key="mini",
            body_hash="0" * 64,
        )
        return job_id

    async def get(self, job_id: str) -> Job:
        """Return the job."""
        return await self.queue.get(job_id, tenant=DEFAULT_TENANT)

    async def follow(self, job_id: str) -> AsyncIterator[Event]:
        """Yield the job's events to their end."""
        async for event in self._follower.follow(job_id, after="0-0", idle_s=5.0):
            if event is not None:
                yield event

    async def events(self, job_id: str) -> list[Event]:
        """Return all events, when the job has ended."""
        return [event async for event in self.follow(job_id)]


@asynccontextmanager
async def jobs_of(service: RunningService, redis_url: str) -> AsyncIterator[Jobs]:
    """Yield the jobs of a service's namespace."""
    settings = RedisSettings(url=redis_url, namespace=service.namespace)
    redis = await connect(settings)
    queue = JobQueue(redis, QueueSettings(), settings.namespace)
    follower = EventFollower(redis, queue)
    try:
        yield Jobs(queue, follower)
    finally:
        await follower.aclose()
        await redis.aclose()
