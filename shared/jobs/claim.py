"""A worker's hold on one job: what it may say about the job, as long as its attempt token is current.

Calls ride out an outage of the server: they are sent again until an answer comes, or until a whole lease has
passed without one; after that the job may be another worker's, and the claim counts as lost.
"""

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar

from redis.exceptions import RedisError

from shared import metrics
from shared.contracts import (
    EventType,
    GenerationPrompt,
    ImageResult,
    Job,
    JobStatus,
    Stage,
    Task,
)
from shared.errors import LLMGAError
from shared.jobs.leases import JobCanceled, LeaseLost
from shared.jobs.records import images_json
from shared.jobs.scripts import EndReply, Scripts
from shared.jobs.server import unavailable

logger = logging.getLogger("llmga.jobs")

PAUSE_S = 0.2  # between tries while the server is away

T = TypeVar("T")


class Claim:
    """One attempt at one stage of one job."""

    def __init__(
        self,
        scripts: Scripts,
        *,
        job: Job,
        tenant: str,
        batch_key: str,
        token: str,
        worker: str,
        lease_ms: int,
        left: int = 0,
    ) -> None:
        """`left`: how many jobs of the stage were still queued after this one was handed out."""
        self.job = job
        self.tenant = tenant
        self.batch_key = batch_key
        self.token = token
        self.worker = worker
        self.lease_ms = lease_ms
        self.left = left
        self.attempt = job.attempts
        self.lost = asyncio.Event()
        self._ended = False
        self._scripts = scripts
        self._lock = asyncio.Lock()  # events keep their order, and nothing follows the end
        self._emitted = 0
        self._reason: LeaseLost | None = None
        self._callbacks: list[Callable[[], None]] = []

    @property
    def ended(self) -> bool:
        """Whether this attempt was brought to an end, by success, failure or release."""
        return self._ended

    @property
    def canceled(self) -> bool:
        """Whether the claim is lost because the job was canceled."""
        return isinstance(self._reason, JobCanceled)

    def on_lost(self, callback: Callable[[], None]) -> None:
        """Call `callback` once in the event loop when the claim is lost; at once if it is lost already."""
        if self.lost.is_set():
            callback()
        else:
            self._callbacks.append(callback)

    def lose(self, reason: LeaseLost) -> None:
        """Mark the claim as lost; for the lease keeper and for messages about cancels."""
        if self.lost.is_set() or self._ended:
            return
        self._reason = reason
        self.lost.set()
        metrics.LEASES_LOST.labels(stage=self.job.stage).inc()
        for callback in self._callbacks:
            try:
                callback()
            except Exception:
                logger.exception("a callback for a lost claim failed", extra={"job_id": self.job.id})

    async def emit(self, event: EventType, data: Mapping[str, Any]) -> None:
        """Append one event to the job's stream.

        Raises:
            LeaseLost: the attempt token is no longer current (JobCanceled if the job was canceled).
        """
        await self.emit_many([(event, data)])

    async def emit_many(self, events: Sequence[tuple[EventType, Mapping[str, Any]]]) -> None:
        """Append events in one step.

        Raises:
            LeaseLost: as for `emit`.
        """
        if not events:
            return
        encoded = [(str(event), json.dumps(data, ensure_ascii=False, separators=(",", ":"))) for event, data in events]
        async with self._lock:
            self._emitted += 1
            answer = await self._persist(
                lambda: self._scripts.emit(job_id=self.job.id, token=self.token, number=self._emitted, events=encoded)
            )
        if answer != "ok":
            raise self._refused(answer)

    async def advance(self, prompt: GenerationPrompt) -> None:
        """End the prompt stage with its prompt; the job goes on to render, to approval, or has succeeded.

        Raises:
            LeaseLost: as for `emit`; nothing was changed.
        """
        request = self.job.request
        if request.task is Task.PROMPT:
            next_step = JobStatus.SUCCEEDED.value
        elif request.approve:
            next_step = JobStatus.AWAITING_APPROVAL.value
        else:
            next_step = Stage.RENDER.value
        reply = await self._end(
            lambda: self._scripts.advance(
                job_id=self.job.id, token=self.token, next_step=next_step, prompt=prompt.model_dump_json()
            )
        )
        if reply.outcome == "ok" and request.task is Task.PROMPT:
            self._count(JobStatus.SUCCEEDED)

    async def finish(
        self,
        images: list[ImageResult],
        *,
        prompt_tokens: int | None = None,
        truncated_tokens: int | None = None,
    ) -> None:
        """End the job with its pictures.

        Raises:
            LeaseLost: as for `emit`; nothing was changed.
        """
        prompt = self.job.prompt
        if prompt is None:
            raise ValueError("a job without a prompt cannot be finished")
        counted = prompt.model_copy(update={"prompt_tokens": prompt_tokens, "truncated_tokens": truncated_tokens})
        reply = await self._end(
            lambda: self._scripts.finish(
                job_id=self.job.id,
                token=self.token,
                images=images_json(images),
                prompt=counted.model_dump_json(),
            )
        )
        if reply.outcome == "ok":
            self._count(JobStatus.SUCCEEDED)

    async def fail(self, error: LLMGAError, *, retry: bool = False) -> None:
        """End the attempt: the job fails with `error`, or is tried again while attempts remain.

        Raises:
            LeaseLost: as for `emit`; nothing was changed.
        """
        reply = await self._end(
            lambda: self._scripts.fail(
                job_id=self.job.id,
                token=self.token,
                retry=retry,
                problem=error.to_problem().model_dump_json(),
            )
        )
        if reply.outcome in {"failed", "buried"}:
            self._count(JobStatus.FAILED)

    async def release(self) -> None:
        """Give the job back without counting the attempt.

        Raises:
            LeaseLost: as for `emit`; nothing was changed.
        """
        await self._end(lambda: self._scripts.release(job_id=self.job.id, token=self.token))

    async def _end(self, call: Callable[[], Awaitable[EndReply]]) -> EndReply:
        async with self._lock:
            reply = await self._persist(call)
            if reply.outcome in {"lost", "canceled"}:
                raise self._refused(reply.outcome)
            self._ended = True
        if reply.spent_ms is not None:
            metrics.STAGE_SECONDS.labels(stage=self.job.stage).observe(reply.spent_ms / 1000)
        return reply

    async def _persist(self, call: Callable[[], Awaitable[T]]) -> T:
        """Make the call until it is answered, for at most one lease."""
        loop = asyncio.get_running_loop()
        end = loop.time() + self.lease_ms / 1000
        while True:
            if self._reason is not None:
                raise self._reason
            if self._ended:
                raise LeaseLost(f"this attempt at job {self.job.id} has ended")
            try:
                return await call()
            except (RedisError, OSError) as error:
                if unavailable(error) is None:
                    raise
                if loop.time() >= end:
                    self.lose(LeaseLost(f"the queue did not answer for a whole lease of job {self.job.id}"))
                    continue
            await asyncio.sleep(PAUSE_S)

    def _refused(self, answer: str) -> LeaseLost:
        if answer == "canceled":
            reason: LeaseLost = JobCanceled(f"job {self.job.id} was canceled")
        else:
            reason = LeaseLost(f"the lease on job {self.job.id} is no longer ours")
        self.lose(reason)
        return reason

    def _count(self, status: JobStatus) -> None:
        metrics.JOBS_FINISHED.labels(stage=self.job.stage, status=status).inc()
