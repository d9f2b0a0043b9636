"""The worker's loop: outcomes, capacity, outages, draining."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest

from shared.contracts import Announcement, EventType, JobStatus, Phase, Stage
from shared.errors import InvalidRequest, RenderFailed
from shared.jobs import Claim, Consumer, JobQueue, connect
from shared.settings import QueueSettings, RedisSettings
from tests.shared.jobs.steps import (
    PATIENCE_S,
    check_consistency,
    claim,
    end_lease,
    eventually,
    image,
    pass_server_time,
    prompt,
    queue_with,
    stored_events,
    submit,
)
from tests.valkey import Server

Handler = Callable[[Claim], Awaitable[None]]


class Worker:
    """A consumer in a task of its own."""

    def __init__(
        self,
        queue: JobQueue,
        settings: RedisSettings,
        handle: Handler,
        *,
        stage: Stage = Stage.RENDER,
        capacity: int = 4,
        name: str = "worker-1",
        drain_s: float = PATIENCE_S,
        **options: Any,
    ) -> None:
        self.queue = queue
        self.stop = asyncio.Event()
        self.consumer = Consumer(
            queue,
            settings,
            stage=stage,
            worker=name,
            handle=handle,
            capacity=capacity,
            announcement=lambda: Announcement(
                worker=name,
                stage=stage,
                phase=Phase.READY,
                free=self.consumer.free(),
                running=self.consumer.running,
            ),
            **options,
        )
        self.task = asyncio.create_task(self.consumer.run(self.stop, drain_s=drain_s))

    async def end(self) -> None:
        """Stop and drain."""
        self.stop.set()
        async with asyncio.timeout(PATIENCE_S):
            await self.task


Start = Callable[..., Worker]


@pytest.fixture
async def start(queue: JobQueue, redis_settings: RedisSettings) -> AsyncIterator[Start]:
    """Yield a function that starts a worker; all are ended after the test."""
    workers: list[Worker] = []

    def start_worker(handle: Handler, **options: Any) -> Worker:
        worker = Worker(queue, redis_settings, handle, **options)
        workers.append(worker)
        return worker

    yield start_worker
    for worker in workers:
        worker.task.cancel()
        await asyncio.gather(worker.task, return_exceptions=True)


async def finish(taken: Claim) -> None:
    await taken.finish([image()])


async def ended(queue: JobQueue, *job_ids: str) -> None:
    async def all_ended() -> bool:
        jobs = [await queue.get(job_id) for job_id in job_ids]
        return all(job.status in {JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELED} for job in jobs)

    await eventually(all_ended)


async def test_both_stages_are_worked_by_their_consumers(queue: JobQueue, start: Start) -> None:
    async def write(taken: Claim) -> None:
        await taken.emit(EventType.PROMPT_DELTA, {"text": "a"})
        await taken.advance(prompt())

    start(write, stage=Stage.PROMPT, name="mllm-1")
    start(finish, stage=Stage.RENDER, name="diffusion-1")
    ids = [(await submit(queue, stage=Stage.PROMPT)).id for _ in range(10)]
    await ended(queue, *ids)
    for job_id in ids:
        assert (await queue.get(job_id)).status is JobStatus.SUCCEEDED
    await check_consistency(queue)


async def test_no_more_jobs_are_taken_than_there_is_room_for(queue: JobQueue, start: Start) -> None:
    most = running = 0
    gate = asyncio.Event()

    async def handle(taken: Claim) -> None:
        nonlocal most, running
        running += 1
        most = max(most, running)
        await gate.wait()
        running -= 1
        await finish(taken)

    worker = start(handle, capacity=3)
    ids = [(await submit(queue)).id for _ in range(7)]

    async def full() -> bool:
        return worker.consumer.free() == 0

    await eventually(full)
    gate.set()
    await ended(queue, *ids)
    assert most == 3


async def test_room_that_varies_is_kept_to_and_used_when_it_grows(queue: JobQueue, start: Start) -> None:
    places = 1
    gate = asyncio.Event()

    async def handle(taken: Claim) -> None:
        await gate.wait()
        await finish(taken)

    worker: Worker = start(handle, capacity=4, room=lambda: places - worker.consumer.running)
    ids = [(await submit(queue)).id for _ in range(6)]

    async def has(count: int) -> bool:
        assert worker.consumer.running <= count
        return worker.consumer.running == count and worker.consumer.free() == 0

    await eventually(lambda: has(1))
    places = 3
    worker.consumer.wake()
    await eventually(lambda: has(3))
    places = 10  # more than the capacity
    worker.consumer.wake()
    await eventually(lambda: has(4))
    places = 0  # less than what runs
    assert worker.consumer.free() == 0
    places = 10
    gate.set()
    await ended(queue, *ids)


async def test_backlog_is_claimed_by_several_at_once_and_never_beyond_the_capacity(
    queue: JobQueue, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim = queue.claim
    asking = most = running = most_running = 0

    async def counted(*arguments: Any, **options: Any) -> Claim | None:
        nonlocal asking, most
        asking += 1
        most = max(most, asking)
        try:
            return await claim(*arguments, **options)
        finally:
            asking -= 1

    async def handle(taken: Claim) -> None:
        nonlocal running, most_running
        running += 1
        most_running = max(most_running, running)
        await finish(taken)
        running -= 1

    monkeypatch.setattr(queue, "claim", counted)
    ids = [(await submit(queue)).id for _ in range(40)]
    start(handle, capacity=10)
    await ended(queue, *ids)
    assert 1 < most <= 8
    assert most_running <= 10
    await check_consistency(queue)


@pytest.mark.parametrize("error", [RenderFailed("It is black."), InvalidRequest("Too odd.")])
async def test_error_of_the_job_ends_it_without_another_attempt(
    queue: JobQueue, start: Start, error: Exception
) -> None:
    async def handle(taken: Claim) -> None:
        raise error

    start(handle)
    await submit(queue, "j1")
    await ended(queue, "j1")
    job = await queue.get("j1")
    assert job.error is not None
    assert (job.attempts, job.error.detail) == (1, str(error))
    assert await queue.dead_letters() == []


async def test_unknown_error_is_tried_again_and_its_text_stays_inside(queue: JobQueue, start: Start) -> None:
    async def handle(taken: Claim) -> None:
        if taken.job.id == "sick" or taken.attempt == 1:
            raise RuntimeError("CUDA error at secret/path.cu:12")
        await finish(taken)

    start(handle)
    await submit(queue, "sick")
    await submit(queue, "fine")
    await ended(queue, "sick", "fine")
    assert (await queue.get("fine")).status is JobStatus.SUCCEEDED
    sick = await queue.get("sick")
    assert sick.error is not None
    assert (sick.status, sick.attempts, sick.error.code) == (JobStatus.FAILED, 3, "attempts_exhausted")
    assert "secret" not in sick.model_dump_json()
    assert "secret" not in str(await cast(Any, queue.redis).hgetall(queue.job_key("sick")))


async def test_handler_that_ends_nothing_is_tried_again(queue: JobQueue, start: Start) -> None:
    async def handle(taken: Claim) -> None:
        if taken.attempt > 1:
            await finish(taken)

    start(handle)
    await submit(queue, "j1")
    await ended(queue, "j1")
    assert (await queue.get("j1")).attempts == 2


async def test_worker_is_told_of_a_cancel_by_message(queue: JobQueue, redis_settings: RedisSettings) -> None:
    # Nothing is emitted and the lease is not renewed within the test's patience, so only the message can tell.
    queue = queue_with(queue, redis_settings.namespace, {"lease_ms": 600_000})
    started = asyncio.Event()
    told: list[bool] = []

    async def handle(taken: Claim) -> None:
        started.set()
        await taken.lost.wait()
        told.append(taken.canceled)

    worker = Worker(queue, redis_settings, handle, capacity=1)
    await submit(queue, "j1")
    await started.wait()
    await queue.cancel("j1")

    async def free_again() -> bool:
        return worker.consumer.free() == 1

    await eventually(free_again)
    assert told == [True]
    assert (await queue.get("j1")).status is JobStatus.CANCELED
    await worker.end()


async def test_two_consumers_share_the_jobs_and_run_none_twice(queue: JobQueue, start: Start) -> None:
    at_work: set[str] = set()
    both = asyncio.Event()

    async def handle(taken: Claim) -> None:
        at_work.add(taken.worker)
        if len(at_work) == 2:
            both.set()
        await both.wait()
        await finish(taken)

    for name in ("worker-1", "worker-2"):
        start(handle, name=name, capacity=2)
    ids = [(await submit(queue)).id for _ in range(20)]
    await ended(queue, *ids)
    workers = set()
    for job_id in ids:
        assert (await stored_events(queue, job_id)).count(EventType.STARTED) == 1
        workers.add(await started_by(queue, job_id))
    assert workers == {"worker-1", "worker-2"}


async def started_by(queue: JobQueue, job_id: str, *, attempt: int = 1) -> str:
    entries = cast(Any, await queue.redis.xrange(queue.events_key(job_id)))
    starts = [json.loads(fields["data"]) for _, fields in entries if fields["type"] == EventType.STARTED]
    return str(starts[attempt - 1]["worker"])


async def test_only_work_of_the_named_batch_keys_is_taken(queue: JobQueue, start: Start) -> None:
    keys = ["x"]
    worker = start(finish, batch_keys=lambda: [keys])
    await submit(queue, "y", batch_key="y")
    await submit(queue, "x", batch_key="x")
    await ended(queue, "x")
    assert (await queue.get("y")).status is JobStatus.QUEUED
    keys[:] = ["y"]
    worker.consumer.wake()
    await ended(queue, "y")


async def test_work_is_found_without_messages(queue: JobQueue, redis_settings: RedisSettings, start: Start) -> None:
    sources = {name: text.replace("redis.call('PUBLISH',", "tostring(") for name, text in queue.scripts.sources.items()}
    silent = JobQueue(queue.redis, queue.settings, redis_settings.namespace, sources=sources)
    worker = start(finish)
    await announced(queue)
    await submit(silent, "j1")
    await ended(queue, "j1")
    assert worker.consumer.progressing()


async def announced(queue: JobQueue) -> Announcement:
    async def there() -> bool:
        return bool(await queue.workers())

    await eventually(there)
    return (await queue.workers())[0]


async def test_consumer_announces_itself_and_withdraws(queue: JobQueue, start: Start) -> None:
    worker = start(finish, capacity=5)
    announcement = await announced(queue)
    assert (announcement.worker, announcement.stage, announcement.free) == ("worker-1", Stage.RENDER, 5)
    ttl_ms = await queue.redis.pttl(f"{queue.scripts.base}worker:worker-1")
    assert 0 < ttl_ms <= queue.settings.lease_ms
    await worker.end()
    assert await queue.workers() == []


async def test_dead_worker_is_not_listed(queue: JobQueue) -> None:
    for name in ("alive", "dead"):
        await queue.announce(Announcement(worker=name, stage=Stage.PROMPT, phase=Phase.LOADING))
    await queue.redis.delete(f"{queue.scripts.base}worker:dead")  # as its expiry would
    assert [announcement.worker for announcement in await queue.workers()] == ["alive"]


async def test_consumer_takes_over_from_a_dead_worker(queue: JobQueue, start: Start) -> None:
    await submit(queue, "j1")
    await claim(queue, worker="dead")
    start(finish)
    await announced(queue)
    assert (await queue.get("j1")).status is JobStatus.RUNNING
    await end_lease(queue, "j1")
    await ended(queue, "j1")
    assert await started_by(queue, "j1", attempt=2) == "worker-1"


async def test_consumer_keeps_its_lease_while_the_handler_runs(queue: JobQueue, redis_settings: RedisSettings) -> None:
    short = queue_with(queue, redis_settings.namespace, {"lease_ms": 3_000})

    async def handle(taken: Claim) -> None:
        await pass_server_time(queue.redis, 3_500)
        await finish(taken)

    worker = Worker(short, redis_settings, handle)  # reaps every second
    await submit(short, "j1")
    await ended(short, "j1")
    await worker.end()
    assert (await stored_events(short, "j1")).count(EventType.STARTED) == 1


async def test_draining_lets_running_jobs_end_and_takes_no_more(queue: JobQueue, start: Start) -> None:
    started, gate = asyncio.Event(), asyncio.Event()

    async def handle(taken: Claim) -> None:
        started.set()
        await gate.wait()
        await finish(taken)

    worker = start(handle)
    await submit(queue, "running")
    await started.wait()
    worker.stop.set()
    await submit(queue, "later")
    gate.set()
    await worker.end()
    assert (await queue.get("running")).status is JobStatus.SUCCEEDED
    assert (await queue.get("later")).status is JobStatus.QUEUED


@pytest.mark.parametrize("manner", ["canceled", "swallows", "raises"])
async def test_job_that_does_not_end_while_draining_is_given_back(queue: JobQueue, start: Start, manner: str) -> None:
    started = asyncio.Event()

    async def handle(taken: Claim) -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            if manner == "canceled":
                raise
            if manner == "raises":
                raise RuntimeError("the engine was told to stop") from None

    worker = start(handle, drain_s=0.01)
    await submit(queue, "j1")
    await started.wait()
    await worker.end()
    job = await queue.get("j1")
    assert (job.status, job.attempts) == (JobStatus.QUEUED, 0)
    assert (await claim(queue)).attempt == 1
    await check_consistency(queue)


async def test_loop_that_stands_still_is_seen(queue: JobQueue, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = start(finish)
    await announced(queue)
    assert worker.consumer.progressing()
    monkeypatch.setattr("shared.jobs.consumer.STALLED_AFTER_S", 0.0)
    assert not worker.consumer.progressing()
    await worker.end()
    assert worker.consumer.progressing()


async def test_consumer_survives_cut_connections_and_forgotten_scripts(queue: JobQueue, start: Start) -> None:
    start(finish)
    redis = cast(Any, queue.redis)
    for number in range(5):
        await redis.script_flush()
        await redis.client_kill_filter(_type="pubsub")
        await redis.client_kill_filter(_type="normal", skipme=True)
        await submit(queue, f"j{number}")
        await ended(queue, f"j{number}")


@asynccontextmanager
async def private(server: Server) -> AsyncIterator[tuple[JobQueue, RedisSettings]]:
    settings = RedisSettings(url=server.url)
    redis = await connect(settings)
    yield JobQueue(redis, QueueSettings(lease_ms=60_000), settings.namespace), settings
    await redis.aclose()


async def test_consumer_survives_restarts_of_the_server_and_runs_no_job_twice(
    start_server: Callable[..., Server], binary: Path
) -> None:
    server = start_server(binary)
    async with private(server) as (queue, settings):
        started = asyncio.Event()
        gate = asyncio.Event()

        async def handle(taken: Claim) -> None:
            started.set()
            await gate.wait()
            await taken.emit(EventType.RENDER_PROGRESS, {"index": 0, "step": 1, "total_steps": 1})
            await finish(taken)

        worker = Worker(queue, settings, handle)
        for number in range(3):
            started.clear()
            gate.clear()
            await submit(queue, f"j{number}")
            await started.wait()
            server.kill()
            gate.set()  # it speaks while nobody listens
            await asyncio.sleep(0.2)
            assert not worker.task.done()
            server.start()
            await ended(queue, f"j{number}")
            assert await stored_events(queue, f"j{number}") == [
                "job.queued", "job.started", "render.progress", "job.succeeded",
            ]  # fmt: skip
        await worker.end()


async def test_consumer_survives_a_flush(start_server: Callable[..., Server], binary: Path) -> None:
    async with private(start_server(binary)) as (queue, settings):
        started = asyncio.Event()
        lost: list[bool] = []

        async def handle(taken: Claim) -> None:
            if taken.job.id == "flushed":
                started.set()
                await flushed.wait()
                try:
                    await finish(taken)
                finally:
                    lost.append(taken.lost.is_set())
            await finish(taken)

        flushed = asyncio.Event()
        worker = Worker(queue, settings, handle)
        await submit(queue, "flushed")
        await started.wait()
        await cast(Any, queue.redis).flushall()
        await cast(Any, queue.redis).script_flush()
        flushed.set()
        await submit(queue, "j1")
        await ended(queue, "j1")
        assert lost == [True]
        await worker.end()


async def test_consumer_ends_while_the_server_is_away(start_server: Callable[..., Server], binary: Path) -> None:
    server = start_server(binary)
    async with private(server) as (queue, settings):
        worker = Worker(queue, settings, finish)
        await announced(queue)
        server.kill()
        await worker.end()
