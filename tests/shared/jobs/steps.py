"""What the queue's tests do over and over, and a check that the queue's keys agree with each other."""

import asyncio
import hashlib
import itertools
from collections import Counter
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
from shared.contracts.limits import FREE, UNLIMITED, Charge, Limits
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
    limits: Limits = UNLIMITED,
    charge: Charge = FREE,
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
        limits=limits,
        charge=charge,
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
        while not await condition():
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


async def check_consistency(queue: JobQueue) -> dict[str, dict[str, str]]:
    """Assert that the queue's keys say the same of every job; return the jobs' hashes."""
    base = queue.scripts.base
    keys = [key async for key in cast(Any, queue.redis).scan_iter(match="*" + base[1:] + "*", count=1_000)]
    stored = await _read(queue.redis, keys)
    await _check_active(queue, keys, stored)
    sets = {key.removeprefix(base): value for key, value in stored.items() if isinstance(value, list)}
    jobs = {key.removeprefix(f"{base}job:"): stored[key] for key in keys if key.startswith(f"{base}job:")}
    running = {job_id for job_id, job in jobs.items() if job["status"] == "running"}
    assert {job_id for job_id, _ in sets.pop("leases", [])} == running
    assert {job_id for job_id, _ in sets.pop("deadlines", [])} == {
        job_id
        for job_id, job in jobs.items()
        if job["status"] == "awaiting_approval" or (job["status"] == "queued" and "deadline" in job)
    }
    for stage in Stage:
        at_work = {job_id for job_id in running if jobs[job_id]["stage"] == stage}
        assert {job_id for job_id, _ in sets.pop(f"running:{stage}", [])} == at_work
    for stage, lane in itertools.product(Stage, Lane):
        queued = {
            job_id: job
            for job_id, job in jobs.items()
            if (job["status"], job["stage"], job["lane"]) == ("queued", stage, lane)
        }
        name = f"queue:{stage}:{lane}"
        places = {job_id: float(job["place"]) for job_id, job in queued.items()}
        assert dict(sets.pop(name, [])) == places
        ring = {tenant for tenant, _ in sets.pop(f"{name}:ring", [])}
        assert ring == {job["tenant"] for job in queued.values()}
        for group in {f"tenant:{job['tenant']}" for job in queued.values()} | {
            f"key:{job['tenant']}:{job['batch_key']}" for job in queued.values()
        }:
            assert dict(sets.pop(f"{name}:{group}")) == {
                job_id: places[job_id]
                for job_id, job in queued.items()
                if group in {f"tenant:{job['tenant']}", f"key:{job['tenant']}:{job['batch_key']}"}
            }
        counts = {key: int(count) for key, count in stored.get(f"{base}{name}:keys", {}).items()}
        assert counts == dict(Counter(job["batch_key"] for job in queued.values()))
    assert not [name for name in sets if name.startswith("queue:")]
    _check_lists(sets, jobs)
    lives = await _lives(queue, list(jobs))
    for job_id, job in jobs.items():
        ended = job["status"] in {"succeeded", "failed", "canceled"}
        assert [life > 0 for life in lives[job_id]] == [ended, ended], f"{job_id} is {job['status']}"
        assert ("token" in job) == (job["status"] == "running")
    return jobs


def _check_lists(sets: Mapping[str, list[tuple[str, float]]], jobs: Mapping[str, dict[str, str]]) -> None:
    """Assert that each tenant's list holds all its jobs, and that those that have ended are to leave it."""
    for tenant in {job["tenant"] for job in jobs.values()}:
        own = {job_id: job for job_id, job in jobs.items() if job["tenant"] == tenant}
        assert {job_id for job_id, _ in sets[f"jobs:{tenant}"]} == own.keys()
        assert {job_id for job_id, _ in sets.get(f"ended:{tenant}", [])} == {
            job_id for job_id, job in own.items() if job["status"] in {"succeeded", "failed", "canceled"}
        }


async def _check_active(queue: JobQueue, keys: list[str], stored: Mapping[str, Any]) -> None:
    """Assert that each tenant's set of jobs under way holds those that have not ended."""
    base = queue.scripts.base
    counted = {
        key.removeprefix(f"{base}active:"): await cast(Any, queue.redis.smembers(key))
        for key in keys
        if key.startswith(f"{base}active:")
    }
    under_way: dict[str, set[str]] = {}
    for key in keys:
        if key.startswith(f"{base}job:") and stored[key]["status"] not in {"succeeded", "failed", "canceled"}:
            under_way.setdefault(stored[key]["tenant"], set()).add(key.removeprefix(f"{base}job:"))
    assert counted == under_way


async def _read(redis: Redis, keys: list[str]) -> dict[str, Any]:
    """Return hashes as dictionaries and sorted sets as lists of (member, score)."""
    async with redis.pipeline(transaction=False) as pipeline:
        for key in keys:
            pipeline.type(key)
        kinds = dict(zip(keys, await pipeline.execute(), strict=True))
        wanted = [key for key, kind in kinds.items() if kind in {"hash", "zset"}]
        for key in wanted:
            if kinds[key] == "hash":
                pipeline.hgetall(key)
            else:
                pipeline.zrange(key, 0, -1, withscores=True)
        return dict(zip(wanted, await pipeline.execute(), strict=True))


async def _lives(queue: JobQueue, job_ids: list[str]) -> dict[str, tuple[int, int]]:
    """Return the seconds that each job's hash and events have to live; -1: no end."""
    async with queue.redis.pipeline(transaction=False) as pipeline:
        for job_id in job_ids:
            pipeline.ttl(queue.job_key(job_id))
            pipeline.ttl(queue.events_key(job_id))
        lives = await pipeline.execute()
    return dict(zip(job_ids, zip(lives[::2], lives[1::2], strict=True), strict=True))
