"""`python -m gateway` as a process: help, settings, and an orderly end."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from clients.sse import messages
from shared.artifacts import ArtifactStore
from shared.contracts import Job, JobStatus, Stage
from shared.jobs import JobQueue
from shared.settings import RedisSettings, Settings
from tests.gateway.conftest import PATIENCE_S, serving, until
from tests.gateway.workers import Worker
from tests.ports import free_port, listening
from tests.valkey import Server

COMMAND = [sys.executable, "-m", "gateway"]


def _run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments], env={**os.environ, **environment}, capture_output=True, text=True, timeout=PATIENCE_S
    )


def test_help_lists_the_settings_and_loads_no_server() -> None:
    result = _run("--help")
    assert result.returncode == 0
    assert "LLMGA_GATEWAY__PORT" in result.stdout
    code = """
import sys
import gateway.__main__
sys.argv = ["gateway", "--help"]
try:
    gateway.__main__.main()
finally:
    print(sorted({"fastapi", "uvicorn"} & set(sys.modules)))
"""
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE_S)
    assert loaded.stdout.endswith("[]\n")


def test_wrong_settings_are_all_reported_with_exit_code_2() -> None:
    result = _run(LLMGA_GATEWAY__PORTT="1", LLMGA_GATEWAY__MAX_WAIT_S="-1")
    assert result.returncode == 2
    assert "did you mean LLMGA_GATEWAY__PORT?" in result.stderr
    assert "LLMGA_GATEWAY__MAX_WAIT_S" in result.stderr


def test_server_that_may_lose_jobs_is_refused_with_what_to_set(
    start_server: Callable[..., Server], tmp_path: Path
) -> None:
    unfit = start_server(appendonly="no")
    result = _run(LLMGA_HOME=str(tmp_path), LLMGA_REDIS__URL=unfit.url, LLMGA_GATEWAY__PORT=str(free_port()))
    assert result.returncode == 1
    assert "appendonly yes" in result.stderr


@pytest.mark.parametrize("taken", ["PORT", "METRICS_PORT"])
def test_port_that_is_taken_is_named(valkey_url: str, tmp_path: Path, taken: str) -> None:
    with listening() as socket:
        socket.listen()
        port = socket.getsockname()[1]
        ports = {"LLMGA_GATEWAY__PORT": str(free_port()), "LLMGA_GATEWAY__METRICS_PORT": "0"}
        ports[f"LLMGA_GATEWAY__{taken}"] = str(port)
        result = _run(LLMGA_HOME=str(tmp_path), LLMGA_REDIS__URL=valkey_url, **ports)
    assert result.returncode == 1
    assert f"cannot listen on 127.0.0.1:{port}" in result.stderr
    assert "Traceback" not in result.stderr


async def test_sigterm_ends_a_gateway_that_still_waits_for_the_queue(tmp_path: Path) -> None:
    environment = {
        "LLMGA_HOME": str(tmp_path),
        "LLMGA_REDIS__URL": f"redis://127.0.0.1:{free_port()}/0",
        "LLMGA_GATEWAY__PORT": str(free_port()),
    }
    process = await asyncio.create_subprocess_exec(
        *COMMAND, env={**os.environ, **environment}, stderr=asyncio.subprocess.PIPE
    )
    assert process.stderr is not None
    async with asyncio.timeout(PATIENCE_S):
        while b"Started server process" not in await process.stderr.readline():
            pass
    process.send_signal(signal.SIGTERM)
    _, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    assert b"Traceback" not in errors


@asynccontextmanager
async def _process(settings: Settings) -> AsyncIterator[tuple[asyncio.subprocess.Process, httpx.AsyncClient, str]]:
    """Run the gateway as a process; yield it, a client, and the URL of its metrics port."""
    port, metrics_port = free_port(), free_port()
    environment = {
        "LLMGA_HOME": str(settings.home),
        "LLMGA_REDIS__URL": settings.redis.url,
        "LLMGA_REDIS__NAMESPACE": settings.redis.namespace,
        "LLMGA_GATEWAY__PORT": str(port),
        "LLMGA_GATEWAY__METRICS_PORT": str(metrics_port),
        "LLMGA_AUTH__MODE": "none",
    }
    process = await asyncio.create_subprocess_exec(
        *COMMAND, env={**os.environ, **environment}, stderr=asyncio.subprocess.PIPE
    )
    try:
        async with httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE_S, trust_env=False
        ) as client:

            async def answers() -> bool:
                try:
                    return (await client.get("/livez")).status_code == 200
                except httpx.TransportError:
                    return False

            await until(answers)
            yield process, client, f"http://127.0.0.1:{metrics_port}"
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


@pytest.fixture
async def workers(
    queue: JobQueue, redis_settings: RedisSettings, artifacts: ArtifactStore
) -> AsyncIterator[tuple[Worker, Worker]]:
    """Yield a running worker per stage."""
    prompt, render = (Worker(queue, redis_settings, artifacts, stage) for stage in (Stage.PROMPT, Stage.RENDER))
    async with prompt.running(), render.running():
        yield prompt, render


async def test_sigterm_ends_streams_and_waiting_calls_without_harm_and_exits_0(
    settings: Settings, workers: tuple[Worker, Worker], queue: JobQueue
) -> None:
    prompt, _ = workers
    prompt.gate.clear()
    body = {"instruction": "a red house"}
    async with _process(settings) as (process, client, _):
        await until(lambda: _is_ready(client))
        waiting = asyncio.create_task(client.post("/v1/generations", json=body, headers={"Prefer": "wait=300"}))

        async def stream() -> list[str]:
            headers = {"Accept": "text/event-stream"}
            async with client.stream("POST", "/v1/generations", json=body, headers=headers) as response:
                return [line async for line in response.aiter_lines()]

        streaming = asyncio.create_task(stream())
        await until(lambda: len(prompt.claims) == 2)
        process.send_signal(signal.SIGTERM)
        answer, lines = await waiting, await streaming
        assert answer.status_code == 202
        assert lines[0] == "retry: 1000"
        events = list(messages(lines))
        assert [event.event for event in events] == ["job.queued", "job.started", "prompt.delta"]
        _, errors = await process.communicate()
        assert process.returncode == 0, errors.decode()
        assert b"Traceback" not in errors
    # The jobs live on, and another gateway goes on where this one stopped.
    prompt.gate.set()
    job_ids = {Job.model_validate(answer.json()).id, *(claim.job.id for claim in prompt.claims)}
    assert len(job_ids) == 2
    for job_id in job_ids:
        await until(lambda job_id=job_id: _has_succeeded(queue, job_id))  # type: ignore[misc]  # bound per turn
    async with serving(settings) as server:
        url = f"http://127.0.0.1:{server.port}/v1/jobs/{prompt.claims[0].job.id}/events"
        async with httpx.AsyncClient(trust_env=False, timeout=PATIENCE_S) as client:
            rest = (await client.get(url, headers={"Last-Event-ID": events[-1].id})).text
    assert "event: job.succeeded" in rest


async def _is_ready(client: httpx.AsyncClient) -> bool:
    return (await client.get("/readyz")).status_code == 200


async def _has_succeeded(queue: JobQueue, job_id: str) -> bool:
    return (await queue.get(job_id)).status is JobStatus.SUCCEEDED


async def test_metrics_and_probes_have_a_port_of_their_own(settings: Settings, workers: tuple[Worker, Worker]) -> None:
    async with _process(settings) as (_, client, metrics_url):
        await until(lambda: _is_ready(client))
        body = {"instruction": "a red house"}
        answer = await client.post("/v1/generations", json=body, headers={"Prefer": "wait=60"})
        assert answer.status_code == 200
        async with httpx.AsyncClient(base_url=metrics_url, trust_env=False, timeout=PATIENCE_S) as watcher:
            assert (await watcher.get("/livez")).status_code == 200
            assert (await watcher.get("/readyz")).status_code == 200
            text = (await watcher.get("/metrics")).text
        assert (await client.get("/metrics")).status_code == 404
    families = {family.name: family for family in text_string_to_metric_families(text)}
    requests = {
        (sample.labels["route"], sample.labels["status"]): sample.value
        for sample in families["llmga_http_requests"].samples
        if sample.name.endswith("_total")
    }
    assert requests["/v1/generations", "200"] == 1
    assert "llmga_sse_followers" in families
    live = families["llmga_live_workers"].samples
    assert sum(sample.value for sample in live if sample.labels["phase"] == "ready") == 2


async def test_settings_of_the_tests_home_are_used(settings: Settings, tmp_path: Path) -> None:
    async with _process(settings):
        assert (tmp_path / "artifacts").is_dir()
