"""The connection, and which servers are fit to hold jobs."""

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal, cast

import pytest
from redis.asyncio import Redis

from shared.contracts import JobStatus, Stage
from shared.errors import QueueUnavailable
from shared.jobs import JobQueue, UnfitServer, check_server, connect
from shared.settings import QueueSettings, RedisSettings
from tests.shared.jobs.steps import check_consistency, claim, image, prompt, submit
from tests.valkey import Server

Durability = Literal["always", "everysec", "none"]


@pytest.fixture
def server(start_server: Callable[..., Server], binary: Path) -> Server:
    """Return a private server, which a test may set up and break as it likes."""
    return start_server(binary)


@asynccontextmanager
async def connected(settings: RedisSettings) -> AsyncIterator[Redis]:
    redis = await connect(settings, wait_s=0)
    yield redis
    await redis.aclose()


async def test_server_of_the_tests_is_fit(redis_client: Redis, redis_settings: RedisSettings) -> None:
    await check_server(redis_client, redis_settings)


@pytest.mark.parametrize(
    ("config", "durability", "advice"),
    [
        ({"maxmemory-policy": "allkeys-lru"}, "always", "set `maxmemory-policy noeviction`"),
        ({"maxmemory-policy": "volatile-ttl"}, "none", "set `maxmemory-policy noeviction`"),
        ({"appendonly": "no"}, "always", "set `appendonly yes` and `appendfsync always`"),
        ({"appendonly": "no"}, "everysec", "set `appendonly yes` and `appendfsync everysec`"),
        ({"appendfsync": "everysec"}, "always", "LLMGA_REDIS__DURABILITY=everysec"),
        ({"appendfsync": "no"}, "everysec", "set `appendfsync everysec`"),
    ],
)
async def test_unfit_server_is_refused_with_what_to_set(
    server: Server, config: dict[str, str], durability: Durability, advice: str
) -> None:
    settings = RedisSettings(url=server.url, durability=durability)
    async with connected(settings) as redis:
        await check_server(redis, settings)
        for name, value in config.items():
            await redis.config_set(name, value)
        with pytest.raises(UnfitServer) as refusal:
            await check_server(redis, settings)
        assert len(refusal.value.problems) == 1
        assert advice in str(refusal.value)


async def test_all_faults_are_told_at_once(server: Server) -> None:
    settings = RedisSettings(url=server.url)
    async with connected(settings) as redis:
        await redis.config_set("maxmemory-policy", "allkeys-random")
        await redis.config_set("appendonly", "no")
        with pytest.raises(UnfitServer) as refusal:
            await check_server(redis, settings)
        assert len(refusal.value.problems) == 2


async def test_less_durable_server_is_fit_where_that_is_accepted(server: Server) -> None:
    settings = RedisSettings(url=server.url, durability="none")
    async with connected(settings) as redis:
        await redis.config_set("appendonly", "no")
        await check_server(redis, settings)


async def test_forbidden_config_is_a_warning_and_the_rest_is_checked(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    with server.client() as admin:
        cast(Any, admin).execute_command("ACL", "SETUSER", "worker", "on", ">secret", "+@all", "-config", "~*", "&*")
    settings = RedisSettings(url=server.url.replace("unix://", "unix://worker:secret@"))
    async with connected(settings) as redis:
        with caplog.at_level(logging.WARNING, logger="llmga.jobs"):
            await check_server(redis, settings)
        assert "does not show its appendfsync" in caplog.text
        with server.client() as admin:
            admin.config_set("maxmemory-policy", "allkeys-lru")
            admin.config_set("appendonly", "no")
        with pytest.raises(UnfitServer) as refusal:
            await check_server(redis, settings)
        assert len(refusal.value.problems) == 2


async def test_server_that_does_not_answer_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(QueueUnavailable):
        await connect(RedisSettings(url=f"unix://{tmp_path}/none"), wait_s=0)


async def test_refused_credentials_are_told_at_once(server: Server) -> None:
    with server.client() as admin:
        admin.config_set("requirepass", "right")
    settings = RedisSettings(url=server.url.replace("unix://", "unix://:wrong@"))
    with pytest.raises(QueueUnavailable, match="credentials"):
        await connect(settings, wait_s=3_600)


async def test_every_state_of_a_job_survives_the_death_of_the_server(server: Server) -> None:
    settings = RedisSettings(url=server.url)
    async with connected(settings) as redis:
        queue = JobQueue(redis, QueueSettings(lease_ms=600_000), settings.namespace)
        await submit(queue, "held", stage=Stage.PROMPT, approve=True)
        await (await claim(queue, Stage.PROMPT)).advance(prompt())
        await submit(queue, "ended")
        await (await claim(queue)).finish([image()])
        await submit(queue, "running")
        running = await claim(queue)
        await submit(queue, "queued", idempotency_key="k")
        before = [await queue.get(job_id) for job_id in ("held", "ended", "running", "queued")]
        server.kill()
        server.start()
        after = [await queue.get(job_id) for job_id in ("held", "ended", "running", "queued")]
        assert after == before
        await check_consistency(queue)
        await running.finish([image()])  # with the token from before
        assert (await submit(queue, "again", idempotency_key="k")).id == "queued"
        assert (await claim(queue)).job.id == "queued"


async def test_calls_while_the_server_is_away_are_unavailable(server: Server) -> None:
    settings = RedisSettings(url=server.url)
    async with connected(settings) as redis:
        queue = JobQueue(redis, QueueSettings(), settings.namespace)
        await submit(queue, "j1")
        server.kill()
        for call in (submit(queue), queue.get("j1"), queue.cancel("j1"), queue.depth(), queue.workers()):
            with pytest.raises(QueueUnavailable) as refusal:
                await call
            assert refusal.value.retry_after_s >= 1
        server.start()
        assert (await queue.get("j1")).status is JobStatus.QUEUED


async def test_full_memory_refuses_new_jobs_as_a_whole_and_lets_running_ones_end(server: Server) -> None:
    settings = RedisSettings(url=server.url)
    async with connected(settings) as redis:
        queue = JobQueue(redis, QueueSettings(), settings.namespace)
        await submit(queue, "running")
        await submit(queue, "queued")
        await submit(queue, "unwanted")
        running = await claim(queue)
        await redis.config_set("maxmemory", "1")
        keys = await redis.dbsize()
        with pytest.raises(QueueUnavailable) as refusal:
            await submit(queue, "refused")
        assert "memory" in refusal.value.detail
        assert await redis.dbsize() == keys
        await running.finish([image()])
        await queue.cancel("unwanted")
        await (await claim(queue)).finish([image()])
        await queue.reap()
        await redis.config_set("maxmemory", "0")
        await check_consistency(queue)
        await submit(queue, "refused")


async def test_scripts_come_back_after_the_server_forgot_them(queue: JobQueue) -> None:
    await submit(queue, "j1")
    await cast(Any, queue.redis).script_flush()
    taken = await claim(queue)
    await cast(Any, queue.redis).script_flush()
    await taken.finish([])
    assert (await queue.get("j1")).status is JobStatus.SUCCEEDED


async def test_read_only_replica_is_unavailable_for_writes(server: Server) -> None:
    settings = RedisSettings(url=server.url)
    async with connected(settings) as redis:
        queue = JobQueue(redis, QueueSettings(), settings.namespace)
        await submit(queue, "j1")
        await cast(Any, redis).execute_command("REPLICAOF", "127.0.0.1", "1")
        with pytest.raises(QueueUnavailable):
            await submit(queue, "j2")
