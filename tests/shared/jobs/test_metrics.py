"""What the queue counts, and when."""

from collections.abc import Callable
from typing import Any

import pytest

from shared.contracts import Announcement, JobStatus, Phase, Stage, Task
from shared.errors import InternalError, RenderFailed
from shared.jobs import JobQueue, LeaseLost
from shared.metrics import REGISTRY
from shared.settings import RedisSettings
from tests.shared.jobs.steps import claim, end_lease, image, pass_deadline, prompt, queue_with, submit

Counted = Callable[..., float]


def sample(name: str, labels: dict[str, Any]) -> float:
    value: float | None = REGISTRY.get_sample_value(name, {key: str(text) for key, text in labels.items()})
    return value or 0.0


@pytest.fixture
def counted() -> Counted:
    """Return a function that says by how much a sample has grown since it was last asked for."""
    seen: dict[tuple[str, ...], float] = {}
    for metric in REGISTRY.collect():
        for one in metric.samples:
            seen[one.name, *map(str, sorted(one.labels.items()))] = one.value

    def grown(name: str, **labels: Any) -> float:
        texts = {key: str(text) for key, text in labels.items()}
        key = (name, *map(str, sorted(texts.items())))
        before, seen[key] = seen.get(key, 0.0), sample(name, labels)
        return seen[key] - before

    return grown


async def test_job_that_succeeds_is_counted_at_each_stage(queue: JobQueue, counted: Counted) -> None:
    await submit(queue, "j1", stage=Stage.PROMPT, idempotency_key="k")
    await submit(queue, "j2", stage=Stage.PROMPT, idempotency_key="k")  # makes no job
    assert counted("llmga_submitted_jobs_total", task=Task.TEXT_TO_IMAGE, lane="interactive") == 1
    writing = await claim(queue, Stage.PROMPT, token="t")
    await claim(queue, Stage.PROMPT, token="t")  # the same attempt
    assert counted("llmga_queue_wait_seconds_count", stage=Stage.PROMPT) == 1
    await writing.advance(prompt())
    assert counted("llmga_stage_duration_seconds_count", stage=Stage.PROMPT) == 1
    await (await claim(queue)).finish([image()])
    assert counted("llmga_queue_wait_seconds_count", stage=Stage.RENDER) == 1
    assert counted("llmga_stage_duration_seconds_count", stage=Stage.RENDER) == 1
    assert counted("llmga_finished_jobs_total", stage=Stage.PROMPT, status=JobStatus.SUCCEEDED) == 0
    assert counted("llmga_finished_jobs_total", stage=Stage.RENDER, status=JobStatus.SUCCEEDED) == 1


async def test_every_way_to_fail_is_counted_once(
    queue: JobQueue, redis_settings: RedisSettings, counted: Counted
) -> None:
    def failed() -> float:
        return counted("llmga_finished_jobs_total", stage=Stage.RENDER, status=JobStatus.FAILED)

    twice = queue_with(queue, redis_settings.namespace, {"max_attempts": 2})
    await submit(twice, "refused")
    await (await claim(twice)).fail(RenderFailed("x"))
    assert failed() == 1
    await submit(twice, "broken")
    await (await claim(twice)).fail(InternalError("x"), retry=True)
    assert failed() == 0
    await (await claim(twice)).fail(InternalError("x"), retry=True)
    assert failed() == 1
    await submit(twice, "lost")
    for attempt in (1, 2):
        await claim(twice)
        await end_lease(twice, "lost")
        await twice.reap()
        assert counted("llmga_reclaimed_jobs_total", stage=Stage.RENDER) == 1
        assert failed() == attempt - 1
    for reaps in (True, False):
        job = await submit(twice, deadline_s=60)
        await pass_deadline(twice, job.id)
        if reaps:
            await twice.reap()
        else:
            await twice.claim(Stage.RENDER, worker="w")
        assert failed() == 1
    assert counted("llmga_reclaimed_jobs_total", stage=Stage.RENDER) == 0
    await twice.reap()
    assert sample("llmga_dead_letter_jobs", {}) == 2


async def test_cancel_and_lost_claim_are_counted_once(queue: JobQueue, counted: Counted) -> None:
    await submit(queue, "j1")
    taken = await claim(queue)
    for _ in range(2):
        await queue.cancel("j1")
        with pytest.raises(LeaseLost):
            await taken.finish([])
    assert counted("llmga_finished_jobs_total", stage=Stage.RENDER, status=JobStatus.CANCELED) == 1
    assert counted("llmga_lost_leases_total", stage=Stage.RENDER) == 1


async def test_depths_and_workers_are_shown_as_they_are(queue: JobQueue) -> None:
    await submit(queue)
    await submit(queue, lane="batch")
    await submit(queue, stage=Stage.PROMPT)
    await queue.reap()
    for stage, lane, depth in (("render", "interactive", 1), ("render", "batch", 1), ("prompt", "interactive", 1)):
        assert sample("llmga_queue_depth_jobs", {"stage": stage, "lane": lane}) == depth
    await claim(queue)
    await queue.reap()
    assert sample("llmga_queue_depth_jobs", {"stage": "render", "lane": "interactive"}) == 0
    await queue.announce(Announcement(worker="w", stage=Stage.PROMPT, phase=Phase.LOADING))
    await queue.workers()
    assert sample("llmga_live_workers", {"stage": "prompt", "phase": "loading"}) == 1
    await queue.announce(Announcement(worker="w", stage=Stage.PROMPT, phase=Phase.READY))
    await queue.workers()
    assert sample("llmga_live_workers", {"stage": "prompt", "phase": "loading"}) == 0
    assert sample("llmga_live_workers", {"stage": "prompt", "phase": "ready"}) == 1
