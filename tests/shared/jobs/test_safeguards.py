"""Every promise holds, and is broken when its safeguard is taken out of the Lua: the tests can fail."""

import re

import pytest
from redis.asyncio import Redis

from shared.jobs import JobQueue
from shared.jobs.scripts import load_sources
from shared.settings import RedisSettings
from tests.shared.jobs.promises import PROMISES
from tests.shared.jobs.steps import check_consistency, queue_with
from tests.valkey import Server, forget_namespace


def test_every_marked_safeguard_has_a_promise() -> None:
    marked = {name for text in load_sources().values() for name in re.findall(r"-- safeguard: (.+)$", text, re.M)}
    assert marked == set(PROMISES)


@pytest.mark.parametrize("safeguard", PROMISES)
async def test_promise_holds(safeguard: str, queue: JobQueue, redis_settings: RedisSettings) -> None:
    promise, settings = PROMISES[safeguard]
    guarded = queue_with(queue, redis_settings.namespace, settings)
    await promise(guarded)
    await check_consistency(guarded)


@pytest.mark.parametrize("safeguard", PROMISES)
async def test_promise_is_broken_without_its_safeguard(
    safeguard: str, queue: JobQueue, redis_settings: RedisSettings, redis_client: Redis, valkey: Server
) -> None:
    promise, settings = PROMISES[safeguard]
    unguarded = queue_with(queue, redis_settings.namespace, settings, without=safeguard)
    assert unguarded.scripts.sources != queue.scripts.sources
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        await promise(unguarded)
    with valkey.client() as client:  # it may have left what the fixture would report
        forget_namespace(client, redis_settings.namespace)
