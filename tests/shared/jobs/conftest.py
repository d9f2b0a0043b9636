"""The queue's tests run against Valkey and against Redis 7."""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from shared.settings import QueueSettings
from tests.valkey import Server, redis_binary, valkey_binary


@pytest.fixture(scope="session", params=["valkey", "redis"])
def binary(request: pytest.FixtureRequest) -> Path:
    """Return the server's program."""
    found = valkey_binary() if request.param == "valkey" else redis_binary()
    if found is None:
        pytest.skip("this machine has no redis-server of its own")
    return found


@pytest.fixture(scope="session")
def valkey(binary: Path) -> Iterator[Server]:
    """Yield one server per program; the fixtures above build on it."""
    with TemporaryDirectory(prefix="valkey-") as folder:
        server = Server(Path(folder), binary).start()
        yield server
        server.kill()


@pytest.fixture
def queue_settings() -> QueueSettings:
    """Return the queue's settings of most tests: leases long enough that a busy machine cannot end them."""
    return QueueSettings(lease_ms=60_000)
