"""What the queue's tests do over and over, and a check that the queue's keys agree with each other."""

import asyncio
import hashlib
import itertools
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, cast

from redis.asyncio import Redis

from shared.contracts import (
    GenerationPrompt,
    GenerationRequest,
    ImageResult,
    Job,
    Lane,
    PromptMode,
    Stage,
)
from shared.jobs import DEFAULT_TENANT, Claim, JobQueue
from shared.settings import QueueSettings

PATIENCE_S = 60.0  # for a condition on a machine that is busy with other things

_numbers = itertools.count(1)


def new_id() -> str:
    """Return an id that no other job of this run has."""
    return f"job_{next(_numbers)}"


def body_hash(request: GenerationRequest) -> str:
    """Return what the gateway would compare submissions by."""
    return hashlib.sha256(request.model_dump_json().encode()).hexdigest()


async def submit(
    queue: JobQueue,
    job_id: str | None = None,
    *,
    stage: Stage = Stage.RENDER,
    tenant: str = DEFAULT_TENANT,
    batch_key: str = "sd15/64x64",
    idempotency_key: str | None = None,
    instruction: str = "a snowman",
    **fields: Any,
) -> Job:
    """Submit a job to a stage; a job for the render stage is verbatim."""
    if stage is Stage.RENDER:
        fields.setdefault("prompt_mode", PromptMode.VERBATIM)
    request = GenerationRequest(instruction=instruction, **fields)
    submitted = await queue.submit(
        request,
        job_id=job_id or new_id(),
        tenant=tenant,
        stage=stage,
        batch_key=batch_key,
        body_hash=body_hash(request),
        idempotency_key=idempotency_key,
    )
    return submitted.job


async def claim(queue: JobQueue, stage: Stage = Stage.RENDER, **options: Any) -> Claim:
    """Claim a job that must be there."""
    options.setdefault("worker", "worker-1")
    claimed = await queue.claim(stage, **options)
    assert claimed is not None, "nothing to claim"
    return claimed


async def claimed_ids(queue: JobQueue, count: int, **options: Any) -> list[str]:
    """Claim and finish that many jobs; return their ids in order."""
    ids = []
    for _ in range(count):
        taken = await claim(queue, **options)
        ids.append(taken.job.id)
        await taken.finish([])
    return ids


async def stored_events(queue: JobQueue, job_id: str) -> list[str]:
    """Return the types of the events that a job has now."""
    entries = cast(list[tuple[str, dict[str, str]]], await queue.redis.xrange(queue.events_key(job_id)))
    return [fields["type"] for _, fields in entries]


async def eventually(condition: Callable[[], Awaitable[bool]]) -> None:
    """Wait until a condition holds."""
    async with asyncio.timeout(PATIENCE_S):
        while not await condition():  # noqa: ASYNC110 - the condition is on the server
            await asyncio.sleep(0.01)


async def server_ms(redis: Redis) -> int:
    """Return the server's clock."""
    seconds, microseconds = await redis.time()
    return seconds * 1000 + microseconds // 1000


async def pass_server_time(redis: Redis, ms: int) -> None:
    """Wait until the server's clock has gone on by that much."""
    end = await server_ms(redis) + ms

    async def passed() -> bool:
        return await server_ms(redis) > end

    await eventually(passed)


async def end_lease(queue: JobQueue, job_id: str) -> None:
    """Make a job's worker silent for longer than its lease, without waiting."""
    changed = await queue.redis.zadd(f"{queue.scripts.base}leases", {job_id: 1}, xx=True, ch=True)
    assert changed == 1, f"{job_id} has no lease"


async def pass_deadline(queue: JobQueue, job_id: str) -> None:
    """Make a waiting job's deadline lie in the past, without waiting."""
    await cast(Any, queue.redis.hset(queue.job_key(job_id), "deadline", 1))
    changed = await queue.redis.zadd(f"{queue.scripts.base}deadlines", {job_id: 1}, xx=True, ch=True)
    assert changed == 1, f"{job_id} has no deadline"


def prompt(text: str = "a snowman at night, detailed") -> GenerationPrompt:
    """Return a prompt as the language model writes it."""
    return GenerationPrompt(text=text, source="mllm", model="llmga-tiny", finish_reason="stop")


def image(index: int = 0) -> ImageResult:
    """Return a picture as the diffusion service reports it."""
    digest = hashlib.sha256(str(index).encode()).hexdigest()
    return ImageResult(
        index=index,
        id=f"img_{digest[:40]}",
        url=f"/v1/images/img_{digest[:40]}",
        media_type="image/png",
        width=64,
        height=64,
        bytes=1_000,
        sha256=digest,
        seed=index,
    )


def queue_with(queue: JobQueue, namespace: str, settings: Mapping[str, Any], *, without: str | None = None) -> JobQueue:
    """Return a queue beside another one, with other settings, or without one of the safeguards."""
    values = queue.settings.model_dump() | dict(settings)
    sources = {
        name: "\n".join(line for line in text.split("\n") if not line.endswith(f"-- safeguard: {without}"))
        for name, text in queue.scripts.sources.items()
    }
    return JobQueue(queue.redis, QueueSettings(**values), namespace, sources=sources)


async def check_consistency(queue: JobQueue) -> None:
    """Assert that the queue's keys say the same of every job."""
    redis, base = cast(Any, queue.redis), queue.scripts.base
    keys = [key.removeprefix(base) async for key in redis.scan_iter(match="*" + base[1:] + "*", count=1_000)]
    jobs = {key[4:]: await redis.hgetall(base + key) for key in keys if key.startswith("job:")}
    leases = set(await redis.zrange(f"{base}leases", 0, -1))
    assert leases == {job_id for job_id, job in jobs.items() if job["status"] == "running"}
    deadlines = set(await redis.zrange(f"{base}deadlines", 0, -1))
    assert deadlines == {
        job_id
        for job_id, job in jobs.items()
        if job["status"] == "awaiting_approval" or (job["status"] == "queued" and "deadline" in job)
    }
    expected = set()
    for stage, lane in itertools.product(Stage, Lane):
        queued = {
            job_id: job
            for job_id, job in jobs.items()
            if (job["status"], job["stage"], job["lane"]) == ("queued", stage, lane)
        }
        name = f"queue:{stage}:{lane}"
        places = {job_id: float(job["place"]) for job_id, job in queued.items()}
        assert dict(await redis.zrange(base + name, 0, -1, withscores=True)) == places
        counts: dict[str, str] = await redis.hgetall(f"{base}{name}:keys")
        assert {key: int(count) for key, count in counts.items()} == _counts(
            job["batch_key"] for job in queued.values()
        )
        tenants = {job["tenant"] for job in queued.values()}
        assert set(await redis.zrange(f"{base}{name}:ring", 0, -1)) == tenants
        for tenant in tenants:
            own = {job_id for job_id, job in queued.items() if job["tenant"] == tenant}
            assert set(await redis.zrange(f"{base}{name}:tenant:{tenant}", 0, -1)) == own
            expected.add(f"{name}:tenant:{tenant}")
        for job in queued.values():
            expected.add(f"{name}:key:{job['tenant']}:{job['batch_key']}")
    assert {key for key in keys if ":tenant:" in key or ":key:" in key} == expected
    for job_id, job in jobs.items():
        ended = job["status"] in {"succeeded", "failed", "canceled"}
        for key in (queue.job_key(job_id), queue.events_key(job_id)):
            assert (await redis.ttl(key) > 0) == ended, f"{key} of a job that is {job['status']}"
        assert ("token" in job) == (job["status"] == "running")


def _counts(values: Any) -> dict[str, int]:
    counts: dict[str, int] = {}
    for value in values:
        counts[value] = counts.get(value, 0) + 1
    return counts
