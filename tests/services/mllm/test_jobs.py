"""Jobs through the real queue and the real server."""

import asyncio
from collections.abc import AsyncIterator

import httpx
import numpy as np
import pytest

from shared.contracts import EventType, JobStatus, OutputFormat, Phase, Stage, Task
from shared.jobs import DEFAULT_TENANT
from shared.media import encode_image
from tests.services.mllm.running import RunningService
from tests.services.mllm.submitting import Jobs, jobs_of
from tests.valkey import Server

pytestmark = pytest.mark.slow

LIMIT_S = 60.0


@pytest.fixture
async def jobs(service: RunningService, valkey: Server) -> AsyncIterator[Jobs]:
    """Yield the queue that the service works on."""
    async with jobs_of(service, valkey.url) as jobs:
        yield jobs


def finished(service: RunningService) -> float:
    """Return how many answers vLLM has brought to their end; aborted ones do not count."""
    return service.gauge("request_success_total")


async def gauge_falls_to_zero(service: RunningService, name: str) -> None:
    """Return when vLLM's gauge is 0."""
    async with asyncio.timeout(LIMIT_S):
        while await asyncio.to_thread(service.gauge, name) != 0:  # a gauge tells nobody
            await asyncio.sleep(0.05)


async def test_a_job_ends_with_a_prompt_and_its_deltas_concatenate_to_it(jobs: Jobs) -> None:
    job_id = await jobs.submit(instruction="draw a snowman at night", seed=7)
    events = await jobs.events(job_id)
    job = await jobs.get(job_id)
    assert job.status is JobStatus.SUCCEEDED
    assert job.prompt is not None
    assert job.prompt.text
    assert (job.prompt.source, job.prompt.model, job.prompt.fallback) == ("mllm", "mini", None)
    deltas = [event.data["text"] for event in events if event.type is EventType.PROMPT_DELTA]
    assert "".join(deltas) == job.prompt.text
    assert [event.type for event in events if event.type is not EventType.PROMPT_DELTA] == [
        EventType.QUEUED,
        EventType.STARTED,
        EventType.PROMPT_COMPLETED,
        EventType.SUCCEEDED,
    ]


async def test_a_job_for_a_picture_goes_on_to_the_render_stage(jobs: Jobs) -> None:
    job_id = await jobs.submit(task="text_to_image", instruction="draw a red star", size="64x64", seed=1)
    async for event in jobs.follow(job_id):
        if event.type is EventType.PROMPT_COMPLETED:
            break
    job = await jobs.get(job_id)
    assert (job.status, job.stage) == (JobStatus.QUEUED, Stage.RENDER)
    await jobs.queue.cancel(job_id, tenant="default")


async def test_a_job_with_a_picture_gets_a_prompt_that_depends_on_it(jobs: Jobs, service: RunningService) -> None:
    texts = []
    for seed in (1, 2, 1):
        pixels = np.random.default_rng(seed).integers(0, 256, (30, 20, 3), dtype=np.uint8)
        image = await asyncio.to_thread(
            service.artifacts.put, encode_image(pixels, OutputFormat.PNG, {}), "image/png", tenant=DEFAULT_TENANT
        )
        job_id = await jobs.submit(image=image.id, seed=3)
        assert (await jobs.events(job_id))[-1].type is EventType.SUCCEEDED
        prompt = (await jobs.get(job_id)).prompt
        assert prompt is not None
        texts.append(prompt.text)
    assert texts[0] == texts[2]
    assert service.gauge("mm_cache_hits_total") > 0


async def test_a_job_whose_picture_is_gone_fails_with_what_to_do(jobs: Jobs) -> None:
    job_id = await jobs.submit(image="img_" + "0" * 40)
    error = (await jobs.events(job_id))[-1].data["error"]
    assert error["code"] == "gone"
    assert "Upload" in error["next_step"]


async def test_the_same_job_gets_the_same_prompt(jobs: Jobs) -> None:
    texts = set()
    for _ in range(2):
        job_id = await jobs.submit(instruction="draw a boat at sunset", seed=11)
        await jobs.events(job_id)
        prompt = (await jobs.get(job_id)).prompt
        assert prompt is not None
        texts.add(prompt.text)
    assert len(texts) == 1


async def test_forty_jobs_at_once_all_succeed_whatever_their_lengths(jobs: Jobs, service: RunningService) -> None:
    ids = [
        await jobs.submit(instruction="draw a red star" + " and a cat" * (number * 7), seed=number)
        for number in range(40)
    ]
    for job_id in ids:
        events = await jobs.events(job_id)
        job = await jobs.get(job_id)
        assert job.status is JobStatus.SUCCEEDED, job.error
        assert job.prompt is not None
        deltas = [event.data["text"] for event in events if event.type is EventType.PROMPT_DELTA]
        assert "".join(deltas) == job.prompt.text
    await gauge_falls_to_zero(service, "num_requests_running")


async def test_a_cancel_in_the_middle_of_an_answer_frees_the_request_in_vllm(
    jobs: Jobs, service: RunningService
) -> None:
    before = await asyncio.to_thread(finished, service)
    for tries in range(1, 21):
        job_id = await jobs.submit(instruction="draw a traffic light in the rain", seed=tries)
        async for event in jobs.follow(job_id):
            if event.type is EventType.PROMPT_DELTA:
                await jobs.queue.cancel(job_id, tenant="default")
                break
        job = await jobs.get(job_id)
        await gauge_falls_to_zero(service, "num_requests_running")
        if await asyncio.to_thread(finished, service) < before + tries:
            break  # otherwise the answer had ended before the cancel arrived
    assert job.status is JobStatus.CANCELED
    assert job.prompt is None
    assert await asyncio.to_thread(finished, service) == before + tries - 1


@pytest.mark.parametrize("accept", ["text/event-stream", "application/json"])
async def test_a_client_that_leaves_the_direct_call_frees_its_request(service: RunningService, accept: str) -> None:
    before = await asyncio.to_thread(finished, service)
    for tries in range(1, 21):
        read = await asyncio.to_thread(service.gauge, "prompt_tokens_total")
        async with asyncio.timeout(LIMIT_S), httpx.AsyncClient(base_url=service.url) as client:
            call = asyncio.create_task(
                client.post(
                    "/v1/generation-prompts",
                    json={"instruction": f"draw a cat {tries}", "temperature": 2, "max_tokens": 1_000},
                    headers={"Accept": accept},
                    timeout=LIMIT_S,
                )
            )
            while await asyncio.to_thread(service.gauge, "prompt_tokens_total") == read:
                await asyncio.sleep(0)
            call.cancel()
            await asyncio.gather(call, return_exceptions=True)
        await gauge_falls_to_zero(service, "num_requests_running")
        if await asyncio.to_thread(finished, service) < before + tries:
            break  # otherwise the answer had ended before the client left
    assert await asyncio.to_thread(finished, service) == before + tries - 1


async def test_an_instruction_that_does_not_fit_fails_its_job_and_no_other(jobs: Jobs) -> None:
    too_long = await jobs.submit(instruction="x1 " * 2_600)
    fine = await jobs.submit(instruction="draw a cat", seed=1)
    assert (await jobs.events(too_long))[-1].data["error"]["code"] == "prompt_too_long"
    await jobs.events(fine)
    assert (await jobs.get(too_long)).status is JobStatus.FAILED
    assert (await jobs.get(fine)).status is JobStatus.SUCCEEDED


async def test_the_worker_announces_what_it_serves(jobs: Jobs) -> None:
    (worker,) = await jobs.queue.workers()
    assert (worker.stage, worker.phase) == (Stage.PROMPT, Phase.READY)
    (model,) = worker.models
    assert (model.name, model.kind, model.default) == ("mini", "qwen2", True)
    assert set(model.tasks) == set(Task)
    assert worker.free > 0
