"""Probes: alive, ready, and what is missing."""

import httpx
import pytest

from gateway.answers import Readiness
from shared.contracts import Phase, Stage
from tests.gateway.conftest import House, until


async def _readiness(http: httpx.AsyncClient, path: str = "/readyz") -> tuple[int, Readiness]:
    response = await http.get(path)
    return response.status_code, Readiness.model_validate(response.json())


async def test_process_is_alive_without_any_worker(http: httpx.AsyncClient) -> None:
    response = await http.get("/livez")
    assert (response.status_code, response.json()) == (200, {"status": "alive"})


@pytest.mark.parametrize("path", ["/readyz", "/health"])
async def test_system_with_a_ready_worker_per_stage_is_ready(house: House, path: str) -> None:
    status, readiness = await _readiness(house.http, path)
    assert (status, readiness.status, readiness.missing) == (200, "ready", [])
    assert readiness.workers is None


async def test_missing_stages_are_named(http: httpx.AsyncClient) -> None:
    status, readiness = await _readiness(http)
    assert (status, readiness.status, readiness.missing) == (503, "not_ready", ["prompt", "render"])
    assert readiness.stages[Stage.PROMPT].phase is None


async def test_stage_that_starts_shows_its_phase_and_detail(house: House) -> None:
    house.prompt.phase, house.prompt.detail = Phase.LOADING, "weights 3 of 7"
    await house.queue.announce(house.prompt.announcement())

    async def is_seen() -> bool:
        return (await _readiness(house.http))[0] == 503

    await until(is_seen)
    _, readiness = await _readiness(house.http)
    assert readiness.missing == ["prompt"]
    stage = readiness.stages[Stage.PROMPT]
    assert (stage.phase, stage.detail, stage.workers) == (Phase.LOADING, "weights 3 of 7", 1)


async def test_verbose_shows_what_each_worker_says(house: House) -> None:
    _, readiness = await _readiness(house.http, "/readyz?verbose")
    assert readiness.workers is not None
    assert {worker.worker for worker in readiness.workers} == {"test-prompt", "test-render"}


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/health"])
async def test_probes_answer_head(house: House, path: str) -> None:
    assert (await house.http.head(path)).status_code == 200
