"""Leases kept by a thread, and lost by processes that stop."""

import asyncio
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest
from redis import Redis

from shared.contracts import EventType, JobStatus, Stage
from shared.jobs import Claim, JobCanceled, JobQueue, LeaseKeeper, LeaseLost, connect
from shared.settings import QueueSettings, RedisSettings
from tests.shared.jobs.steps import PATIENCE_S, claim, end_lease, eventually, image, queue_with, stored_events, submit
from tests.valkey import Server

# Long enough that a thread which is late on a busy machine is not too late; the tests below wait for one such lease.
LEASE_MS = 3_000


@pytest.fixture
def queue_settings() -> QueueSettings:
    return QueueSettings(lease_ms=LEASE_MS)


@contextmanager
def keeper_of(queue: JobQueue, settings: RedisSettings) -> Iterator[LeaseKeeper]:
    keeper = LeaseKeeper(queue, settings)
    keeper.start()
    yield keeper
    keeper.close()


def hold_event_loop(observer: Redis, until_ms: float) -> None:
    """Do what a long kernel does: nothing of asyncio runs until the server's clock has passed `until_ms`."""
    while int(observer.time()[0]) * 1000 <= until_ms:
        time.sleep(0.01)


async def lease_end_ms(queue: JobQueue, job_id: str) -> float:
    end = await queue.redis.zscore(f"{queue.scripts.base}leases", job_id)
    assert isinstance(end, float)
    return end


async def test_live_owner_keeps_its_job_for_longer_than_a_lease_while_its_event_loop_is_busy(
    queue: JobQueue, redis_settings: RedisSettings, valkey: Server
) -> None:
    await submit(queue, "j1")
    with keeper_of(queue, redis_settings) as keeper, valkey.client() as observer:
        claimed_at = time.monotonic()
        taken = await claim(queue)
        keeper.hold(taken, claimed_at)
        first_end_ms = await lease_end_ms(queue, "j1")
        hold_event_loop(observer, first_end_ms)
        assert await queue.reap() == 0
        await taken.finish([image()])
    assert (await queue.get("j1")).attempts == 1
    assert not taken.lost.is_set()


async def test_unkept_lease_ends_by_the_clock_of_the_server(queue: JobQueue, redis_settings: RedisSettings) -> None:
    queue = queue_with(queue, redis_settings.namespace, {"lease_ms": 300})
    await submit(queue, "j1")
    taken = await claim(queue)

    async def reaped() -> bool:
        return await queue.reap() == 1

    await eventually(reaped)
    with pytest.raises(LeaseLost):
        await taken.finish([image()])


async def test_wall_clock_of_a_worker_decides_nothing(
    queue: JobQueue, redis_settings: RedisSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "time", lambda: 0.0)  # 1970
    await submit(queue, "j1", deadline_s=3_600)
    with keeper_of(queue, redis_settings) as keeper:
        claimed_at = time.monotonic()
        taken = await claim(queue)
        keeper.hold(taken, claimed_at)
        assert await queue.reap() == 0
        await taken.finish([image()])
    job = await queue.get("j1")
    now_s = (await queue.redis.time())[0]
    assert now_s - 60 < job.created_at <= job.updated_at <= now_s + 1


async def test_dropped_claim_is_renewed_no_longer(queue: JobQueue, redis_settings: RedisSettings) -> None:
    await submit(queue, "kept")
    await submit(queue, "dropped")
    with keeper_of(queue, redis_settings) as keeper:
        for _ in range(2):
            taken = await claim(queue)
            keeper.hold(taken, time.monotonic())
            if taken.job.id == "dropped":
                keeper.drop(taken)
        ends = {job_id: await lease_end_ms(queue, job_id) for job_id in ("kept", "dropped")}

        async def kept_is_renewed() -> bool:
            return await lease_end_ms(queue, "kept") > ends["kept"]

        await eventually(kept_is_renewed)
        assert await lease_end_ms(queue, "dropped") == ends["dropped"]


@pytest.mark.parametrize("how", ["lost", "canceled"])
async def test_keeper_tells_the_event_loop_of_a_claim_that_is_lost(
    queue: JobQueue, redis_settings: RedisSettings, how: str
) -> None:
    await submit(queue, "j1")
    await submit(queue, "fine")
    with keeper_of(queue, redis_settings) as keeper:
        taken, fine = await claim(queue), await claim(queue)
        for one in (taken, fine):
            keeper.hold(one, time.monotonic())
        told: list[Claim] = []
        taken.on_lost(lambda: told.append(taken))
        if how == "lost":
            await end_lease(queue, "j1")
        else:
            await queue.cancel("j1")
        async with asyncio.timeout(PATIENCE_S):
            await taken.lost.wait()
        assert told == [taken]
        assert not fine.lost.is_set()
        reason = "was canceled" if how == "canceled" else "no longer ours"  # not: could not be renewed
        with pytest.raises(JobCanceled if how == "canceled" else LeaseLost, match=reason):
            await taken.finish([])
        await fine.finish([])


async def test_keeper_gives_a_claim_up_when_the_server_is_away_for_a_lease(
    start_server: Callable[..., Server], binary: Path
) -> None:
    async with private_queue(start_server(binary), lease_ms=300) as (server, settings, queue):
        await submit(queue, "j1")
        with keeper_of(queue, settings) as keeper:
            claimed_at = time.monotonic()
            taken = await claim(queue)
            server.kill()
            keeper.hold(taken, claimed_at)
            async with asyncio.timeout(PATIENCE_S):
                await taken.lost.wait()
            with pytest.raises(LeaseLost):
                await taken.finish([])
            server.start()

            async def reaped() -> bool:
                return await queue.reap() == 1

            await eventually(reaped)
        assert (await queue.get("j1")).status is JobStatus.QUEUED


async def test_claim_and_its_lease_ride_out_a_restart_of_the_server(
    start_server: Callable[..., Server], binary: Path
) -> None:
    async with private_queue(start_server(binary), lease_ms=30_000) as (server, settings, queue):
        await submit(queue, "j1")
        with keeper_of(queue, settings) as keeper:
            taken = await claim(queue)
            keeper.hold(taken, time.monotonic())
            server.kill()
            emitting = asyncio.create_task(
                taken.emit(EventType.RENDER_PROGRESS, {"index": 0, "step": 1, "total_steps": 2})
            )
            await asyncio.sleep(0.3)
            assert not emitting.done()
            server.start()
            await emitting
            await taken.finish([image()])
        assert (await stored_events(queue, "j1")) == [
            "job.queued", "job.started", "render.progress", "job.succeeded",
        ]  # fmt: skip


async def test_stopped_process_finds_its_late_result_refused(
    queue: JobQueue, redis_settings: RedisSettings, valkey_url: str
) -> None:
    await submit(queue, "j1")
    worker = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.shared.jobs.silent_worker", valkey_url, redis_settings.namespace, "600",
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert worker.stdin is not None
    assert worker.stdout is not None
    try:
        assert (await worker.stdout.readline()).strip() == b"claimed"
        worker.send_signal(signal.SIGSTOP)

        async def reaped() -> bool:
            return await queue.reap() == 1

        await eventually(reaped)
        current = await claim(queue, worker="current")
        worker.send_signal(signal.SIGCONT)
        worker.stdin.write(b"now\n")
        assert (await worker.stdout.readline()).strip() == b"LeaseLost"
        await current.finish([image()])
        assert await worker.wait() == 0
    finally:
        if worker.returncode is None:
            worker.kill()
            await worker.wait()
    assert (await queue.get("j1")).images == [image()]


async def test_live_process_may_finish(queue: JobQueue, redis_settings: RedisSettings, valkey_url: str) -> None:
    # The same worker, not stopped: what is refused above is refused because it was stopped.
    await submit(queue, "j1")
    worker = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.shared.jobs.silent_worker", valkey_url, redis_settings.namespace, "60000",
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    output, _ = await worker.communicate(b"now\n")
    assert output.split() == [b"claimed", b"finished"]


@asynccontextmanager
async def private_queue(server: Server, *, lease_ms: int) -> AsyncIterator[tuple[Server, RedisSettings, JobQueue]]:
    settings = RedisSettings(url=server.url)
    redis = await connect(settings)
    yield server, settings, JobQueue(redis, QueueSettings(lease_ms=lease_ms), settings.namespace)
    await redis.aclose()


async def test_nothing_is_renewed_after_closing(queue: JobQueue, redis_settings: RedisSettings) -> None:
    queue = queue_with(queue, redis_settings.namespace, {"lease_ms": 300})
    await submit(queue, "j1")
    with keeper_of(queue, redis_settings) as keeper:
        keeper.hold(await claim(queue), time.monotonic())
    end_ms = await lease_end_ms(queue, "j1")

    async def reaped() -> bool:
        assert await queue.redis.zscore(f"{queue.scripts.base}leases", "j1") in {None, end_ms}
        return await queue.reap() == 1

    await eventually(reaped)
    assert (await queue.get("j1")).stage is Stage.RENDER
