"""Fixtures for every test: one real Valkey server per run, a fresh namespace of it per test."""

import signal
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from redis.asyncio import Redis

from shared.jobs import JobQueue, connect
from shared.settings import QueueSettings, RedisSettings
from tests.system import system as system
from tests.valkey import Server, forget_namespace, leaked_keys


def pytest_configure() -> None:
    """Hear Ctrl-C again where a shell has started the run in the background: what it starts inherits this."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def valkey() -> Iterator[Server]:
    """Yield the run's server: append-only with `appendfsync always`, no eviction, on a Unix socket."""
    # A Unix socket's path has at most 107 characters, which pytest's own folders can exceed.
    with TemporaryDirectory(prefix="valkey-") as folder:
        server = Server(Path(folder)).start()
        yield server
        server.kill()


@pytest.fixture(scope="session")
def valkey_url(valkey: Server) -> str:
    """Return the URL of the run's server."""
    return valkey.url


@pytest.fixture
def redis_settings(valkey: Server, valkey_url: str) -> Iterator[RedisSettings]:
    """Yield settings with a namespace of the test's own; fail the test if it leaves keys for ever."""
    settings = RedisSettings(url=valkey_url, namespace=f"t{uuid.uuid4().hex[:12]}")
    yield settings
    with valkey.client() as client:
        leaked = leaked_keys(client, settings.namespace)
        forget_namespace(client, settings.namespace)
    assert not leaked, f"keys without an end: {leaked}"


@pytest.fixture
def queue_settings() -> QueueSettings:
    """Return the queue's settings; override it where a test needs its own clocks and bounds."""
    return QueueSettings()


@pytest.fixture
async def redis_client(redis_settings: RedisSettings) -> AsyncIterator[Redis]:
    """Yield a client of the run's server."""
    client = await connect(redis_settings)
    yield client
    await client.aclose()


@pytest.fixture
def queue(redis_client: Redis, redis_settings: RedisSettings, queue_settings: QueueSettings) -> JobQueue:
    """Return an empty queue of the test's own."""
    return JobQueue(redis_client, queue_settings, redis_settings.namespace)


@pytest.fixture
def start_server() -> Iterator[Callable[..., Server]]:
    """Yield a function that starts a private server; the test may kill it and start it on the same data."""
    servers: list[Server] = []
    with TemporaryDirectory(prefix="valkey-") as folder:

        def start(binary: Path | None = None, **config: str) -> Server:
            server = Server(Path(folder) / str(len(servers)), binary, **config)
            servers.append(server)
            return server.start()

        yield start
        for server in servers:
            server.kill()
