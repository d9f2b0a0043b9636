"""The queue as the gateway and the workers see it; each method is one round trip.

Order: the interactive lane goes first, and batch work that has waited longer than `ageing_ms` gets every
fourth claim; within a lane tenants take turns; within a tenant the earliest submission goes first, also
when it comes back.
"""

import logging
import math
import re
import uuid
from collections.abc import Collection, Mapping
from typing import Any, cast

from redis.asyncio import Redis

from shared import metrics
from shared.contracts import (
    Announcement,
    FieldProblem,
    GenerationPrompt,
    GenerationRequest,
    Job,
    JobList,
    JobStatus,
    Lane,
    Phase,
    PromptMode,
    Stage,
    Task,
)
from shared.contracts.limits import FREE, UNLIMITED, Charge, Limits, Standing
from shared.errors import InvalidRequest, NotAwaitingApproval, NotFound
from shared.jobs.claim import Claim
from shared.jobs.placement import Placement
from shared.jobs.records import job_from, job_of, jobs_of
from shared.jobs.refusals import limit_exceeded, no_turn, queue_full
from shared.jobs.scripts import Scripts, load_sources
from shared.jobs.server import client_errors
from shared.jobs.submission import Submitted, known_job, present
from shared.settings import QueueSettings

logger = logging.getLogger("llmga.jobs")

DEFAULT_TENANT = "default"
MAX_BATCH_KEY_CHARS = 200
MAX_IDEMPOTENCY_KEY_CHARS = 255

# Names are parts of Redis keys, so ':' would make two of them one.
_NAME = re.compile(r"[A-Za-z0-9._@-]{1,128}")


class JobQueue:
    """One queue: all the jobs of one namespace on one server."""

    def __init__(
        self,
        redis: Redis,
        settings: QueueSettings,
        namespace: str,
        *,
        sources: Mapping[str, str] | None = None,
    ) -> None:
        self.redis = redis
        self.settings = settings
        self.scripts = Scripts(redis, settings, namespace, load_sources() if sources is None else sources)

    # Keys and channels that readers need.

    def job_key(self, job_id: str) -> str:
        """Return the key of a job's hash."""
        return f"{self.scripts.base}job:{job_id}"

    def events_key(self, job_id: str) -> str:
        """Return the key of a job's event stream."""
        return f"{self.scripts.base}events:{job_id}"

    def notify_channel(self, job_id: str) -> str:
        """Return the channel on which a job's new events are told, by the type of the last one."""
        return f"{self.scripts.base}notify:{job_id}"

    @property
    def rest_channel(self) -> str:
        """The channel on which jobs that have ended, or wait for approval, are told by their ids."""
        return f"{self.scripts.base}rested"

    def wake_channel(self, stage: Stage) -> str:
        """Return the channel on which new work of a stage is told, by its batch key."""
        return f"{self.scripts.base}wake:{stage}"

    def canceled_channel(self, worker: str) -> str:
        """Return the channel on which a worker is told the tokens of its canceled jobs."""
        return f"{self.scripts.base}canceled:{worker}"

    # The gateway's side.

    async def submit(
        self,
        request: GenerationRequest,
        *,
        job_id: str,
        tenant: str = DEFAULT_TENANT,
        stage: Stage,
        prompt: GenerationPrompt | None = None,
        batch_key: str,
        body_hash: str,
        idempotency_key: str | None = None,
        limits: Limits = UNLIMITED,
        charge: Charge = FREE,
        placement: Placement | None = None,
    ) -> Submitted:
        """Accept a job. Submitting the same `job_id` and body again changes nothing.

        `charge` goes off the tenant's units of the day, and comes back for each stage that is never begun and for a
        job that fails. With a `placement` the job becomes a turn of a session in the same step.

        Raises:
            RateLimited, TooManyJobs, QuotaExceeded: one of the tenant's limits is reached.
            QueueFull: the stage's queue, or that of the stage after it, is at its bound.
            IdempotencyConflict: the key came before with another body.
            Gone: the key came before, and its job is no longer kept.
            InvalidRequest: the request is larger than `max_job_bytes`.
            NotFound, SessionFull: the session is not there, or takes no more.
            QueueUnavailable: the server cannot take it now.
        """
        _check_name("job id", job_id)
        _check_name("tenant", tenant)
        if not 1 <= len(batch_key) <= MAX_BATCH_KEY_CHARS:
            raise ValueError(f"a batch key has 1 to {MAX_BATCH_KEY_CHARS} characters")
        if len(idempotency_key or "") > MAX_IDEMPOTENCY_KEY_CHARS:
            raise ValueError(f"an idempotency key has at most {MAX_IDEMPOTENCY_KEY_CHARS} characters")
        if stage is Stage.RENDER and prompt is None:
            if request.prompt_mode is not PromptMode.VERBATIM:
                raise ValueError("a job that starts at the render stage needs a prompt")
            prompt = GenerationPrompt(text=request.instruction, source="verbatim")
        encoded = request.model_dump_json()
        self._check_size(encoded)
        goes_on = stage is Stage.PROMPT and request.task is not Task.PROMPT
        async with client_errors():
            reply = await self.scripts.submit(
                job_id=job_id,
                tenant=tenant,
                stage=stage,
                lane=request.lane,
                batch_key=batch_key,
                body_hash=body_hash,
                idempotency_key=idempotency_key or "",
                deadline_ms=None if request.deadline_s is None else math.ceil(request.deadline_s * 1000),
                later=Stage.RENDER if goes_on else None,
                request=encoded,
                prompt="" if prompt is None else prompt.model_dump_json(),
                limits=limits,
                charge=charge,
                task=request.task,
                webhook=request.webhook,
                placement=placement,
            )
        if reply.outcome == "limited":
            metrics.LIMITED_REQUESTS.labels(limit=reply.limit).inc()
            raise limit_exceeded(reply.limit, reply.wait_ms, reply.drain_rate, reply.standing)
        if reply.outcome in ("no session", "session full"):
            raise no_turn(reply.limit)
        if reply.outcome == "full":
            raise queue_full(self.settings.max_queued, reply.drain_rate)
        known = known_job(reply)
        if known is not None:
            return known
        metrics.JOBS_SUBMITTED.labels(task=request.task, lane=request.lane).inc()
        return Submitted(job_of(present(reply.view), job_id, request), created=True, standing=reply.standing)

    async def recall(self, idempotency_key: str, *, tenant: str = DEFAULT_TENANT, body_hash: str) -> Submitted | None:
        """Return the job that an idempotency key made, None when the key is new.

        Raises:
            IdempotencyConflict, Gone: as for `submit`.
            QueueUnavailable: the server does not answer.
        """
        async with client_errors():
            reply = await self.scripts.recall(tenant=tenant, body_hash=body_hash, idempotency_key=idempotency_key)
        return known_job(reply)

    async def spend(self, *, tenant: str = DEFAULT_TENANT, limits: Limits) -> Standing:
        """Count a request that makes no job against the tenant's limit; return what is left of it.

        Raises:
            RateLimited: the limit is reached.
            QueueUnavailable: the server does not answer.
        """
        async with client_errors():
            reply = await self.scripts.spend(tenant=tenant, limits=limits)
        if reply.outcome == "limited":
            metrics.LIMITED_REQUESTS.labels(limit=reply.limit).inc()
            raise limit_exceeded(reply.limit, reply.wait_ms, 0, reply.standing)
        return reply.standing

    async def get(self, job_id: str, *, tenant: str = DEFAULT_TENANT) -> Job:
        """Return a job, with its place if it is queued, and the estimate of its end.

        Raises:
            NotFound: the tenant has no such job.
            QueueUnavailable: the server does not answer.
        """
        async with client_errors():
            view = await self.scripts.read(job_id=job_id, tenant=tenant)
        if view is None:
            raise _not_found(job_id)
        return job_of(view, job_id)

    async def list_jobs(
        self,
        *,
        tenant: str = DEFAULT_TENANT,
        status: JobStatus | None = None,
        task: Task | None = None,
        limit: int,
        after: str | None = None,
    ) -> JobList:
        """Return at most `limit` of the tenant's jobs, the latest submission first; `after` is the `next` of a page.

        Raises:
            QueueUnavailable: the server does not answer.
        """
        async with client_errors():
            page, last = await self.scripts.list_jobs(
                tenant=tenant, after=after or "", limit=limit, status=status, task=task
            )
        return JobList(data=await jobs_of(page), next=last or None)

    async def cancel(self, job_id: str, *, tenant: str = DEFAULT_TENANT) -> Job:
        """Cancel a job: final at once, its attempt token dies. A job that has ended is returned as it is.

        Raises:
            NotFound: the tenant has no such job.
            QueueUnavailable: the server does not answer.
        """
        async with client_errors():
            reply = await self.scripts.cancel(job_id=job_id, tenant=tenant)
        if reply.outcome == "missing":
            raise _not_found(job_id)
        job = job_of(present(reply.view), job_id)
        if reply.outcome == "canceled":
            metrics.JOBS_FINISHED.labels(stage=job.stage, status=JobStatus.CANCELED).inc()
        return job

    async def approve(self, job_id: str, *, tenant: str = DEFAULT_TENANT, prompt_text: str | None = None) -> Job:
        """Let a held job be rendered, with its prompt or with an edited one.

        The same approval again changes nothing.

        Raises:
            NotFound: the tenant has no such job.
            NotAwaitingApproval: the job is not held, or was approved with another text.
            InvalidRequest: the text is larger than `max_job_bytes`.
            QueueUnavailable: the server cannot take it now.
        """
        edited = ""
        if prompt_text is not None:
            edited = GenerationPrompt(text=prompt_text, source="edited").model_dump_json()
            self._check_size(edited)
        async with client_errors():
            reply = await self.scripts.approve(job_id=job_id, tenant=tenant, text=prompt_text, edited=edited)
        if reply.outcome == "missing":
            raise _not_found(job_id)
        if reply.outcome == "refused":
            raise NotAwaitingApproval(f"Job {job_id} is not held for approval.")
        return job_of(present(reply.view), job_id)

    async def depth(self) -> dict[tuple[Stage, Lane], int]:
        """Return how many jobs wait, per stage and lane."""
        lanes = [(stage, lane) for stage in Stage for lane in Lane]
        async with client_errors(), self.redis.pipeline(transaction=False) as pipeline:
            for stage, lane in lanes:
                pipeline.zcard(f"{self.scripts.base}queue:{stage}:{lane}")
            depths: list[int] = await pipeline.execute()
        return dict(zip(lanes, depths, strict=True))

    async def workers(self) -> list[Announcement]:
        """Return what the live workers say of themselves."""
        async with client_errors():
            alive = await self.scripts.workers()
        announcements = [Announcement.model_validate_json(text) for text in alive]
        for stage in Stage:
            for phase in Phase:
                count = sum(one.stage is stage and one.phase is phase for one in announcements)
                metrics.WORKERS.labels(stage=stage, phase=phase).set(count)
        return announcements

    async def dead_letters(self) -> list[Job]:
        """Return the jobs that used up their attempts, the latest death first."""
        async with client_errors():
            ids = cast(list[str], await self.redis.zrevrange(f"{self.scripts.base}dead", 0, -1))
            async with self.redis.pipeline(transaction=False) as pipeline:
                for job_id in ids:
                    pipeline.hgetall(self.job_key(job_id))
                records: list[dict[str, str]] = await pipeline.execute() if ids else []
        return [job_from(record, job_id) for job_id, record in zip(ids, records, strict=True) if record]

    async def replay(self, job_id: str) -> Job:
        """Start a dead letter anew, with all its attempts and without its deadline.

        Raises:
            NotFound: there is no such dead letter.
            QueueFull: the stage's queue is at its bound.
            QueueUnavailable: the server cannot take it now.
        """
        async with client_errors():
            reply = await self.scripts.replay(job_id=job_id)
        if reply.outcome == "missing":
            raise NotFound(f"There is no dead letter {job_id}.")
        if reply.outcome == "full":
            raise queue_full(self.settings.max_queued, reply.drain_rate)
        return job_of(present(reply.view), job_id)

    async def reap(self) -> int:
        """Take jobs from silent workers, drop jobs whose time is over; return how many there were."""
        async with client_errors():
            reply = await self.scripts.reap()
        for job_id, stage, outcome in reply.outcomes:
            if outcome != "expired":
                logger.warning("job was taken from a silent worker", extra={"job_id": job_id, "outcome": outcome})
                metrics.JOBS_RECLAIMED.labels(stage=stage).inc()
            if outcome != "requeued":
                metrics.JOBS_FINISHED.labels(stage=stage, status=JobStatus.FAILED).inc()
        for (stage, lane), depth in reply.depths.items():
            metrics.QUEUE_DEPTH_JOBS.labels(stage=stage, lane=lane).set(depth)
        metrics.DEAD_LETTERS_JOBS.set(reply.dead_letters)
        return len(reply.outcomes)

    # A worker's side.

    async def announce(self, announcement: Announcement) -> None:
        """Say what this worker is and does; forgotten after one lease unless said again."""
        _check_name("worker", announcement.worker)
        async with client_errors():
            await self.scripts.announce(worker=announcement.worker, announcement=announcement.model_dump_json())

    async def withdraw(self, worker: str) -> None:
        """Take back a worker's announcement."""
        async with client_errors():
            await cast(Any, self.redis.delete(f"{self.scripts.base}worker:{worker}"))

    async def claim(
        self,
        stage: Stage,
        *,
        worker: str,
        batch_keys: Collection[str] | None = None,
        token: str | None = None,
    ) -> Claim | None:
        """Take the next job of a stage, or the next with one of `batch_keys`; None when there is none.

        A call with the token of a running attempt returns that attempt again.
        """
        _check_name("worker", worker)
        if batch_keys is not None and not batch_keys:
            return None
        token = token or uuid.uuid4().hex
        async with client_errors():
            reply = await self.scripts.claim(stage=stage, worker=worker, token=token, batch_keys=batch_keys or ())
        for _ in reply.dropped:
            metrics.JOBS_FINISHED.labels(stage=stage, status=JobStatus.FAILED).inc()
        if reply.job_id is None:
            return None
        if reply.waited_ms >= 0:
            metrics.QUEUE_WAIT_SECONDS.labels(stage=stage).observe(reply.waited_ms / 1000)
        return Claim(
            self.scripts,
            job=job_from(reply.record, reply.job_id),
            tenant=reply.record["tenant"],
            batch_key=reply.record["batch_key"],
            token=token,
            worker=worker,
            lease_ms=self.settings.lease_ms,
            left=reply.left,
        )

    def _check_size(self, encoded: str) -> None:
        size = len(encoded.encode())
        if size > self.settings.max_job_bytes:
            limit = self.settings.max_job_bytes
            raise InvalidRequest(
                f"The request is {size} bytes long; at most {limit} are taken.",
                errors=[FieldProblem(field="", code="too_large", message=f"must be at most {limit} bytes")],
            )


def _check_name(what: str, name: str) -> None:
    if not _NAME.fullmatch(name):
        raise ValueError(f"a {what} has 1 to 128 of the characters A-Z a-z 0-9 . _ @ -")


def _not_found(job_id: str) -> NotFound:
    return NotFound(f"There is no job {job_id[:64]}.")
