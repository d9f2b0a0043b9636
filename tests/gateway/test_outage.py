"""The queue's server dies, hangs and comes back; the gateway says so at once and recovers by itself."""

import asyncio
import os
import signal
import uuid
from collections.abc import AsyncIterator, Callable

import httpx
import pytest

from gateway.answers import Readiness
from shared.contracts import JobStatus
from shared.settings import RedisSettings
from tests.gateway.conftest import House, until
from tests.valkey import Server


@pytest.fixture
def own_server(start_server: Callable[..., Server]) -> Server:
    """Return a server that only this test uses."""
    return start_server()


@pytest.fixture
def redis_settings(own_server: Server) -> RedisSettings:
    """Return settings for that server; it goes with its keys."""
    return RedisSettings(url=own_server.url, namespace=f"t{uuid.uuid4().hex[:12]}", socket_timeout_s=30)


async def _readiness(house: House) -> Readiness:
    return Readiness.model_validate((await house.http.get("/readyz")).json())


async def _submit(house: House) -> httpx.Response:
    return await house.http.post("/v1/generations", json={"instruction": "a red house"})


async def _is_accepted(house: House) -> bool:
    return (await _submit(house)).status_code == 202


def _pid(server: Server) -> int:
    assert server.process is not None
    return server.process.pid


@pytest.fixture(params=["killed", "stopped"])
async def outage(request: pytest.FixtureRequest, house: House, own_server: Server) -> AsyncIterator[Callable[[], None]]:
    """Take the server away in one of two ways; yield what brings it back."""
    ways: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
        "killed": (own_server.kill, own_server.start),
        "stopped": (
            lambda: os.kill(_pid(own_server), signal.SIGSTOP),
            lambda: os.kill(_pid(own_server), signal.SIGCONT),
        ),
    }
    leave, come_back = ways[request.param]
    is_away = True

    def end() -> None:
        nonlocal is_away
        if is_away:
            come_back()
        is_away = False

    leave()
    yield end
    end()  # so that the workers of the house end in order


async def test_outage_is_told_at_once_and_ends_by_itself(house: House, outage: Callable[[], None]) -> None:
    async def is_unready() -> bool:
        return "queue" in (await _readiness(house)).missing

    await until(is_unready)
    for call in (_submit(house), house.http.get("/v1/models"), house.http.get("/v1/jobs/job_1")):
        response = await call
        assert response.status_code == 503
        assert response.json()["code"] == "queue_unavailable"
        assert int(response.headers["retry-after"]) > 0
    assert (await house.http.get("/livez")).status_code == 200
    outage()

    async def is_ready() -> bool:
        return (await _readiness(house)).status == "ready"

    await until(is_ready)
    assert await _is_accepted(house)


async def test_request_in_the_first_moment_of_an_outage_is_answered_503(house: House, own_server: Server) -> None:
    own_server.kill()
    response = await _submit(house)
    assert response.status_code == 503
    assert response.json()["code"] == "queue_unavailable"
    own_server.start()


async def test_follower_rides_out_an_outage(house: House, own_server: Server) -> None:
    house.prompt.gate.clear()
    job = await house.submit()
    await until(lambda: bool(house.prompt.claims))
    lines: list[str] = []
    seen = asyncio.Event()

    async def follow() -> None:
        async with house.http.stream("GET", f"/v1/jobs/{job.id}/events") as response:
            async for line in response.aiter_lines():
                lines.append(line)
                seen.set()

    following = asyncio.create_task(follow())
    await seen.wait()
    own_server.kill()
    await asyncio.sleep(0.2)
    own_server.start()
    house.prompt.gate.set()
    await following
    assert "event: job.succeeded" in lines
    assert (await house.job(job.id)).status is JobStatus.SUCCEEDED
    ids = [line for line in lines if line.startswith("id: ")]
    assert len(ids) == len(set(ids))
