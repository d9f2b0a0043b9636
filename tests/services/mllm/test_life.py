"""How the process begins and ends: phases, draining, a dead engine, refusals."""

import asyncio
import os
import re
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from shared.contracts import EventType, JobStatus, Phase
from shared.jobs import JobQueue, connect
from shared.settings import QueueSettings, RedisSettings
from tests.processes import is_running, until
from tests.services.mllm.running import START_S, RunningService, running
from tests.services.mllm.submitting import jobs_of
from tests.valkey import Server, forget_namespace


def environment(**settings: str) -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("LLMGA_")} | settings


def command(*arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run `python -m services.mllm` to its end."""
    return subprocess.run(
        [sys.executable, "-m", "services.mllm", *arguments],
        env=environment(**settings),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_help_needs_neither_torch_nor_vllm() -> None:
    script = (
        "import sys\nfrom services.mllm.__main__ import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit as end:\n    assert end.code == 0\n"
        "assert not {'torch', 'vllm', 'transformers', 'redis'} & set(sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment(), capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "LLMGA_MLLM__MODEL" in done.stdout


def test_faults_in_the_settings_are_all_told_and_end_with_status_2() -> None:
    done = command(LLMGA_MLLM__PORT="99999999", LLMGA_MLLM__MODLE="x")
    assert done.returncode == 2
    assert "LLMGA_MLLM__PORT" in done.stderr
    assert "did you mean LLMGA_MLLM__MODEL" in done.stderr


def test_a_missing_model_ends_with_status_2() -> None:
    done = command()
    assert done.returncode == 2
    assert "LLMGA_MLLM__MODEL is not set" in done.stderr


def test_a_refused_checkpoint_ends_with_status_2_and_names_the_file(tmp_path: Path, valkey: Server) -> None:
    (tmp_path / "model").mkdir()
    done = command(
        LLMGA_HOME=str(tmp_path / "home"),
        LLMGA_MLLM__METRICS_PORT="0",
        LLMGA_MLLM__MODEL=str(tmp_path / "model"),
        LLMGA_REDIS__URL=valkey.url,
        LLMGA_REDIS__NAMESPACE=f"t{uuid.uuid4().hex[:12]}",
    )
    assert done.returncode == 2
    assert "config.json" in done.stderr
    assert "Traceback" not in done.stderr


async def phases_until_ready(service: RunningService, redis_url: str) -> list[Phase]:
    """Return the phases that the queue was told of, each once."""
    settings = RedisSettings(url=redis_url, namespace=service.namespace)
    redis = await connect(settings)
    queue = JobQueue(redis, QueueSettings(), settings.namespace)
    seen: list[Phase] = []
    try:
        async with asyncio.timeout(START_S):
            while Phase.READY not in seen:
                assert service.process.poll() is None, service.log.read_text()[-8_000:]
                seen += [worker.phase for worker in await queue.workers() if worker.phase not in seen]
                await asyncio.sleep(0.05)
    finally:
        await redis.aclose()
    return seen


@pytest.mark.slow
async def test_start_is_announced_and_sigterm_drains(mini: Path, valkey: Server, tmp_path: Path) -> None:
    namespace = f"t{uuid.uuid4().hex[:12]}"
    with running(
        tmp_path, mini, valkey.url, namespace, LLMGA_MLLM__MAX_CONCURRENCY="2", LLMGA_QUEUE__LEASE_MS="60000"
    ) as service:
        seen = await phases_until_ready(service, valkey.url)
        assert Phase.LOADING in seen
        assert seen == sorted(seen, key=list(Phase).index)
        async with jobs_of(service, valkey.url) as jobs:
            ids = [await jobs.submit(instruction="draw a house at sunset", seed=seed) for seed in range(24)]
            async for event in jobs.follow(ids[0]):
                if event.type is EventType.STARTED:
                    service.terminate()
                    break
            assert await asyncio.to_thread(service.wait_ended) == 0, service.log.read_text()[-8_000:]
            ended = [await jobs.get(job_id) for job_id in ids]
            assert {job.status for job in ended} <= {JobStatus.SUCCEEDED, JobStatus.QUEUED}
            assert ended[0].status is JobStatus.SUCCEEDED
            # What was not finished was never started, or given back without counting the attempt.
            assert {job.attempts for job in ended if job.status is JobStatus.QUEUED} <= {0}
            assert await jobs.queue.workers() == []
    with valkey.client() as client:
        forget_namespace(client, namespace)


@pytest.mark.slow
async def test_a_dead_engine_ends_the_process_and_its_job_comes_back(
    mini: Path, valkey: Server, tmp_path: Path
) -> None:
    namespace = f"t{uuid.uuid4().hex[:12]}"
    with running(tmp_path, mini, valkey.url, namespace, LLMGA_QUEUE__LEASE_MS="3000") as service:
        service.wait_ready()
        async with jobs_of(service, valkey.url) as jobs:
            job_id = await jobs.submit(instruction="draw a fish" + " and a fish" * 100, seed=3)
            async for event in jobs.follow(job_id):
                if event.type is EventType.STARTED:
                    service.kill_descendants()
                    break
            assert await asyncio.to_thread(service.wait_ended) == 3, service.log.read_text()[-8_000:]
            job = await jobs.get(job_id)
            async with asyncio.timeout(60):
                while job.status is JobStatus.RUNNING:
                    await jobs.queue.reap()
                    job = await jobs.get(job_id)
                    await asyncio.sleep(0.1)
            # Back in the queue with the attempt counted; or it was done when the engine died.
            assert (job.status, job.attempts) in {(JobStatus.QUEUED, 1), (JobStatus.SUCCEEDED, 1)}
    with valkey.client() as client:
        forget_namespace(client, namespace)


@pytest.mark.slow
def test_a_queue_that_may_lose_jobs_is_refused_while_loading(mini: Path, tmp_path: Path, start_server: object) -> None:
    assert callable(start_server)
    server = start_server(maxmemory_policy="allkeys-lru")
    with running(tmp_path, mini, server.url, "llmga") as service:
        assert service.wait_ended() == 2
    log = service.log.read_text()
    assert "noeviction" in log
    assert not re.search(r"^Traceback", log, re.MULTILINE)


@pytest.mark.slow
def test_sigterm_during_the_start_ends_everything_that_was_started(mini: Path, valkey: Server, tmp_path: Path) -> None:
    namespace = f"t{uuid.uuid4().hex[:12]}"
    with running(tmp_path, mini, valkey.url, namespace) as service:
        until(lambda: bool(service.workers()), limit_s=START_S, what="the engine process")
        workers = service.workers()
        service.terminate()
        assert service.wait_ended() == 0, service.log.read_text()[-8_000:]
        assert not [pid for pid in workers if is_running(pid)]
    with valkey.client() as client:
        forget_namespace(client, namespace)


def test_a_process_that_vllm_started_ends_with_its_parent(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(
        "import multiprocessing, os, time\n"
        "from services.mllm.parent import watch\n"
        "def child():\n"
        "    watch(); watch()\n"
        "    print(os.getpid(), flush=True)\n"
        "    time.sleep(600)\n"
        "if __name__ == '__main__':\n"
        "    watch()\n"  # has no parent of ours: does nothing
        "    multiprocessing.get_context('spawn').Process(target=child).start()\n"
        "    time.sleep(600)\n"
    )
    parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    assert is_running(child)
    parent.kill()
    parent.wait()
    until(lambda: not is_running(child), what="the end of the child")
    parent.stdout.close()
