"""A real gateway on a free port, before the run's Valkey server, and workers to go with it."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from gateway.server import GatewayServer
from shared.artifacts import ArtifactStore, open_store
from shared.contracts import Job, Stage
from shared.jobs import JobQueue
from shared.settings import AuthSettings, GatewaySettings, QueueSettings, RedisSettings, Settings
from tests.gateway.workers import CAPACITY, Worker
from tests.ports import listening

PATIENCE_S = 60.0  # for a machine that is busy with other things


async def until(condition: Callable[[], Awaitable[bool] | bool]) -> None:
    """Wait until a condition holds."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            holds = condition()
            if holds if isinstance(holds, bool) else await holds:
                return
            await asyncio.sleep(0.01)


@asynccontextmanager
async def serving(settings: Settings) -> AsyncIterator[GatewayServer]:
    """Run a gateway in this event loop while the block runs."""
    server = GatewayServer(settings)
    task = asyncio.create_task(server.serve(sockets=[listening()]))
    try:
        await until(lambda: server.started or task.done())
        if not server.started:
            await task
            raise AssertionError("the gateway did not start")
        yield server
    finally:
        server.should_exit = True
        await task


@dataclass
class House:
    """A running system: the gateway, a client of it, and a worker per stage."""

    server: GatewayServer
    http: httpx.AsyncClient
    queue: JobQueue
    artifacts: ArtifactStore
    prompt: Worker
    render: Worker

    @property
    def url(self) -> str:
        """The gateway's URL."""
        return str(self.http.base_url)

    async def submit(self, **request: object) -> Job:
        """Submit a request and return its job."""
        response = await self.http.post("/v1/generations", json={"instruction": "a red house", **request})
        assert response.status_code == 202, response.text
        return Job.model_validate(response.json())

    async def fill(self) -> httpx.Response:
        """Submit jobs until a stopped worker has all that it takes and the queue is full; return the refusal."""
        self.prompt.gate.clear()
        while True:
            response = await self.http.post("/v1/generations", json={"instruction": "a red house"})
            if response.status_code != 202 and len(self.prompt.claims) == CAPACITY:
                return response

    async def job(self, job_id: str) -> Job:
        """Return a job's record."""
        response = await self.http.get(f"/v1/jobs/{job_id}")
        assert response.status_code == 200, response.text
        return Job.model_validate(response.json())

    async def is_empty(self) -> bool:
        """Whether no job was ever submitted."""
        pattern = self.queue.job_key("*").replace("{", "[{]")
        return not [key async for key in self.queue.redis.scan_iter(pattern)]


@pytest.fixture
def gateway_settings() -> GatewaySettings:
    """Return the gateway's settings; override it where a test needs its own limits."""
    return GatewaySettings(metrics_port=0, max_body_bytes=1_048_576)


@pytest.fixture
def settings(
    redis_settings: RedisSettings, queue_settings: QueueSettings, gateway_settings: GatewaySettings, tmp_path: Path
) -> Settings:
    """Return settings for a system of the test's own."""
    auth = AuthSettings(mode="none")  # what is not about keys has none
    return Settings(home=tmp_path, redis=redis_settings, queue=queue_settings, gateway=gateway_settings, auth=auth)


@pytest.fixture
def artifacts(settings: Settings) -> ArtifactStore:
    """Return the store that the gateway reads."""
    return open_store(settings)


@pytest.fixture
async def gateway(settings: Settings) -> AsyncIterator[GatewayServer]:
    """Yield a running gateway without workers."""
    async with serving(settings) as server:
        yield server


@pytest.fixture
async def http(gateway: GatewayServer) -> AsyncIterator[httpx.AsyncClient]:
    """Yield a client of the gateway."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=20)
    async with httpx.AsyncClient(
        base_url=f"http://127.0.0.1:{gateway.port}", timeout=PATIENCE_S, limits=limits, trust_env=False
    ) as client:
        yield client


async def _are_seen(gateway: GatewayServer) -> bool:
    return len((await gateway.backend.fleet.look_again()).staffed) == 2


@pytest.fixture
async def house(
    gateway: GatewayServer,
    http: httpx.AsyncClient,
    queue: JobQueue,
    artifacts: ArtifactStore,
    redis_settings: RedisSettings,
) -> AsyncIterator[House]:
    """Yield a whole system with a ready worker per stage."""
    prompt, render = (Worker(queue, redis_settings, artifacts, stage) for stage in (Stage.PROMPT, Stage.RENDER))
    async with AsyncExitStack() as stack:
        for worker in (prompt, render):
            await stack.enter_async_context(worker.running())
        await until(lambda: _are_seen(gateway))
        yield House(gateway, http, queue, artifacts, prompt, render)
