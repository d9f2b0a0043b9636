"""The connection to the queue's server, and whether that server may be trusted with jobs.

A command is sent again after a lost connection or answer: every script of the queue does its work once,
however often it arrives. The pool waits for a free connection rather than failing, so a burst of requests
becomes a short line.
"""

import asyncio
import logging
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialWithJitterBackoff
from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    ConnectionError,
    RedisError,
    ResponseError,
    TimeoutError,
)

from shared.errors import QueueUnavailable
from shared.settings import RedisSettings

logger = logging.getLogger("llmga.jobs")

MAX_CONNECTIONS = 64  # commands of one process in flight; more would only wait in the server
RETRIES = 2  # of one command; the longest wait for an answer is three socket time-outs
BACKOFF_BASE_S = 0.05
BACKOFF_CAP_S = 0.5
CONNECT_PAUSE_S = 0.2  # between attempts at the first connection
OLDEST_SERVER = (7, 0)  # the first with flags of scripts; Valkey calls itself 7.2

_DURABILITY = {"none": 0, "everysec": 1, "always": 2}


class UnfitServer(Exception):
    """The server could lose accepted jobs; `problems` says what to set."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__(
            "the Redis server is not fit for the job queue:\n" + "\n".join(f"  - {problem}" for problem in problems)
        )
        self.problems = problems


async def connect(settings: RedisSettings, *, wait_s: float = 30.0) -> Redis:
    """Return a client of the queue's server, waiting up to `wait_s` for the server to answer.

    Raises:
        QueueUnavailable: no answer, or the credentials were refused.
    """
    pool = BlockingConnectionPool.from_url(
        settings.url,
        max_connections=MAX_CONNECTIONS,
        timeout=settings.socket_timeout_s,
        decode_responses=True,
        protocol=2,
        socket_timeout=settings.socket_timeout_s,
        socket_connect_timeout=settings.socket_timeout_s,
        retry=Retry(ExponentialWithJitterBackoff(base=BACKOFF_BASE_S, cap=BACKOFF_CAP_S), RETRIES),
    )
    client = Redis.from_pool(pool)
    loop = asyncio.get_running_loop()
    end = loop.time() + wait_s
    while True:
        try:
            await cast(Any, client.ping())
            return client
        except (RedisError, OSError) as error:
            if _is_refusal(error):
                await client.aclose()
                raise QueueUnavailable("The queue's server refused the credentials.", retry_after_s=30) from error
            if loop.time() >= end:
                await client.aclose()
                raise QueueUnavailable("The queue's server does not answer.", retry_after_s=5) from error
        await asyncio.sleep(CONNECT_PAUSE_S)


def _is_refusal(error: Exception) -> bool:
    # The client reports most refusals as a plain ConnectionError that carries the server's text.
    return isinstance(error, AuthenticationError | AuthorizationError) or any(
        words in str(error) for words in ("username-password", "Authentication required")
    )


async def check_server(redis: Redis, settings: RedisSettings) -> None:
    """Make sure that the server neither evicts nor forgets jobs.

    Where `CONFIG` is forbidden (managed servers), what `INFO` shows is checked and the rest is a warning.

    Raises:
        UnfitServer: the server may evict keys, is less durable than demanded, or is too old.
    """
    info: dict[str, Any] = await redis.info()
    problems = []
    version = str(info.get("redis_version", "0"))
    if _version(version) < OLDEST_SERVER:
        problems.append(f"it is Redis {version}: use Redis 7.0 or later, or Valkey")
    try:
        config = cast(dict[str, str], await redis.config_get("maxmemory-policy", "appendonly", "appendfsync"))
    except ResponseError:
        config = {}
    policy = config.get("maxmemory-policy", str(info.get("maxmemory_policy", "noeviction")))
    appendonly = config.get("appendonly", "yes" if info.get("aof_enabled", 0) else "no")
    if policy != "noeviction":
        problems.append(f"it may evict jobs (maxmemory-policy is {policy}): set `maxmemory-policy noeviction`")
    problems += _durability_problems(settings.durability, appendonly, config.get("appendfsync"))
    if problems:
        raise UnfitServer(problems)


def _durability_problems(demanded: str, appendonly: str, appendfsync: str | None) -> list[str]:
    if demanded == "none":
        return []
    if appendonly != "yes":
        return [
            f"accepted jobs are not on disk (appendonly is {appendonly}): "
            f"set `appendonly yes` and `appendfsync {demanded}`"
        ]
    if appendfsync is None:
        logger.warning("the Redis server does not show its appendfsync; make sure that it is '%s' or safer", demanded)
        return []
    given = {"no": "none"}.get(appendfsync, appendfsync)
    if _DURABILITY[given] < _DURABILITY[demanded]:
        return [
            f"accepted jobs reach the disk too late (appendfsync is {appendfsync}): "
            f"set `appendfsync {demanded}`, or accept the risk with `LLMGA_REDIS__DURABILITY={given}`"
        ]
    return []


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text)[:2])


@asynccontextmanager
async def client_errors() -> AsyncIterator[None]:
    """Turn what the server cannot do now into QueueUnavailable."""
    try:
        yield
    except (RedisError, OSError) as error:
        ours = unavailable(error)
        if ours is None:
            raise
        raise ours from error


def unavailable(error: RedisError | OSError) -> QueueUnavailable | None:
    """Return the error that a client sees when the server cannot serve now; None when we are at fault."""
    if isinstance(error, ConnectionError | TimeoutError | OSError):
        return QueueUnavailable("The queue's server does not answer.", retry_after_s=2)
    text = str(error)
    if text.startswith(("OOM", "command not allowed when used memory")):
        return QueueUnavailable("The queue's server is out of memory.", retry_after_s=30)
    if text.startswith(("MISCONF", "READONLY", "NOSCRIPT", "You can't write", "NOREPLICAS", "MASTERDOWN", "LOADING")):
        return QueueUnavailable("The queue's server takes no writes now.", retry_after_s=10)
    return None
