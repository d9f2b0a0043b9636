"""Submitting, reading, canceling and approving: the gateway's side of the queue."""

from typing import Any

import pytest

from shared.contracts import GenerationRequest, JobStatus, Lane, PromptMode, Stage, Task
from shared.errors import (
    Gone,
    IdempotencyConflict,
    InvalidRequest,
    NotAwaitingApproval,
    NotFound,
    QueueFull,
)
from shared.jobs import JobQueue, LeaseLost
from shared.settings import RedisSettings
from tests.shared.jobs.steps import (
    body_hash,
    check_consistency,
    claim,
    end_lease,
    image,
    pass_deadline,
    prompt,
    queue_with,
    stored_events,
    submit,
)


async def test_job_goes_through_both_stages(queue: JobQueue) -> None:
    submitted = await submit(queue, "j1", stage=Stage.PROMPT)
    assert (submitted.status, submitted.stage, submitted.attempts) == (JobStatus.QUEUED, Stage.PROMPT, 0)
    assert submitted == await queue.get("j1")

    writing = await claim(queue, Stage.PROMPT)
    assert (writing.job.status, writing.attempt, writing.tenant) == (JobStatus.RUNNING, 1, "default")
    await writing.advance(prompt("a long prompt"))
    assert (await queue.get("j1")).status is JobStatus.QUEUED

    rendering = await claim(queue, Stage.RENDER)
    assert (rendering.job.stage, rendering.attempt) == (Stage.RENDER, 1)
    assert rendering.job.prompt == prompt("a long prompt")
    await rendering.finish([image()], prompt_tokens=80, truncated_tokens=3)

    job = await queue.get("j1")
    assert job.status is JobStatus.SUCCEEDED
    assert job.images == [image()]
    assert job.prompt is not None
    assert (job.prompt.text, job.prompt.prompt_tokens, job.prompt.truncated_tokens) == ("a long prompt", 80, 3)
    assert job.queue is None
    assert await stored_events(queue, "j1") == [
        "job.queued", "job.started", "prompt.completed", "job.queued", "job.started", "job.succeeded",
    ]  # fmt: skip
    await check_consistency(queue)


async def test_timings_are_told_stage_by_stage_and_add_up(queue: JobQueue) -> None:
    await submit(queue, "j1", stage=Stage.PROMPT)
    assert (await queue.get("j1")).timings.model_dump(exclude_none=True) == {}
    writing = await claim(queue, Stage.PROMPT)
    assert (await queue.get("j1")).timings.model_dump(exclude_none=True) == {}
    await writing.advance(prompt())
    assert set((await queue.get("j1")).timings.model_dump(exclude_none=True)) == {"prompt_queued_s", "prompt_s"}
    await (await claim(queue)).finish([image()])
    timings = (await queue.get("j1")).timings
    parts = [timings.prompt_queued_s, timings.prompt_s, timings.render_queued_s, timings.render_s]
    assert timings.total_s == pytest.approx(sum(part for part in parts if part is not None), abs=0.001)
    assert None not in parts


async def test_verbatim_job_starts_at_the_render_stage(queue: JobQueue) -> None:
    await submit(queue, "j1", instruction="exactly this", prompt_mode=PromptMode.VERBATIM)
    taken = await claim(queue, Stage.RENDER)
    assert taken.job.prompt is not None
    assert (taken.job.prompt.text, taken.job.prompt.source) == ("exactly this", "verbatim")


async def test_render_stage_needs_a_prompt(queue: JobQueue) -> None:
    with pytest.raises(ValueError, match="needs a prompt"):
        await submit(queue, stage=Stage.RENDER, prompt_mode=PromptMode.REFINE)


async def test_prompt_task_ends_after_the_prompt_stage(queue: JobQueue) -> None:
    await submit(queue, "j1", stage=Stage.PROMPT, task=Task.PROMPT)
    await (await claim(queue, Stage.PROMPT)).advance(prompt("only words"))
    job = await queue.get("j1")
    assert job.status is JobStatus.SUCCEEDED
    assert job.prompt == prompt("only words")
    assert (await stored_events(queue, "j1"))[-2:] == ["prompt.completed", "job.succeeded"]
    assert await queue.claim(Stage.RENDER, worker="w") is None


async def test_same_job_id_and_body_again_changes_nothing(queue: JobQueue) -> None:
    await submit(queue, "j1")
    again = await submit(queue, "j1")
    assert again.id == "j1"
    assert sum((await queue.depth()).values()) == 1
    assert await stored_events(queue, "j1") == ["job.queued"]
    with pytest.raises(IdempotencyConflict):
        await submit(queue, "j1", instruction="another body")
    with pytest.raises(IdempotencyConflict):
        await submit(queue, "j1", tenant="stranger")


async def test_repeated_key_says_that_nothing_was_created(queue: JobQueue) -> None:
    request = GenerationRequest(instruction="x")
    answers = [
        await queue.submit(
            request,
            job_id=job_id,
            stage=Stage.PROMPT,
            batch_key="k",
            body_hash=body_hash(request),
            idempotency_key="key",
        )
        for job_id in ("j1", "j2")
    ]
    assert [(answer.job.id, answer.created) for answer in answers] == [("j1", True), ("j1", False)]


async def test_keys_of_tenants_are_apart(queue: JobQueue) -> None:
    one = await submit(queue, "j1", tenant="a", idempotency_key="key")
    other = await submit(queue, "j2", tenant="b", idempotency_key="key")
    assert (one.id, other.id) == ("j1", "j2")


async def test_key_of_a_job_that_is_no_longer_kept_is_gone(queue: JobQueue) -> None:
    await submit(queue, "j1", idempotency_key="key")
    await (await claim(queue)).finish([])
    await queue.redis.delete(queue.job_key("j1"))  # as its retention would
    with pytest.raises(Gone):
        await submit(queue, "j2", idempotency_key="key")


async def test_full_queue_says_when_to_return_by_its_drain_rate(queue: JobQueue, redis_settings: RedisSettings) -> None:
    small = queue_with(queue, redis_settings.namespace, {"max_queued": 2})
    for _ in range(2):
        await submit(small)
    with pytest.raises(QueueFull) as unmeasured:
        await submit(small)
    assert unmeasured.value.retry_after_s == 30

    now_ms = (await queue.redis.time())[0] * 1000
    # Eleven ends, one every 20 s: a twentieth of a job per second.
    await queue.redis.rpush(f"{queue.scripts.base}finishes:render", *(str(now_ms - 20_000 * n) for n in range(11)))
    await queue.redis.expire(f"{queue.scripts.base}finishes:render", 60)
    with pytest.raises(QueueFull) as measured:
        await submit(small)
    assert 20 <= measured.value.retry_after_s <= 40  # grows while nothing ends


async def test_retry_after_has_bounds(queue: JobQueue, redis_settings: RedisSettings) -> None:
    small = queue_with(queue, redis_settings.namespace, {"max_queued": 1})
    await submit(small)
    finishes = f"{queue.scripts.base}finishes:render"
    now_ms = (await queue.redis.time())[0] * 1000
    await queue.redis.rpush(finishes, str(now_ms), str(now_ms - 3_600_000))
    with pytest.raises(QueueFull) as slow:
        await submit(small)
    await queue.redis.delete(finishes)
    await queue.redis.rpush(finishes, *[str(now_ms + 3_600_000)] * 100)
    await queue.redis.expire(finishes, 60)
    with pytest.raises(QueueFull) as fast:
        await submit(small)
    assert (slow.value.retry_after_s, fast.value.retry_after_s) == (300, 1)


async def test_full_render_queue_refuses_what_would_reach_it_later(
    queue: JobQueue, redis_settings: RedisSettings
) -> None:
    small = queue_with(queue, redis_settings.namespace, {"max_queued": 1})
    await submit(small, stage=Stage.RENDER)
    with pytest.raises(QueueFull):
        await submit(small, stage=Stage.PROMPT)
    await submit(small, stage=Stage.PROMPT, task=Task.PROMPT)  # never reaches the render queue


async def test_too_large_request_is_refused_before_it_is_sent(queue: JobQueue, redis_settings: RedisSettings) -> None:
    small = queue_with(queue, redis_settings.namespace, {"max_job_bytes": 4_096})
    with pytest.raises(InvalidRequest) as refusal:
        await submit(small, instruction="å" * 3_000)  # 3,000 characters, 6,000 bytes
    assert refusal.value.errors[0].code == "too_large"
    assert sum((await queue.depth()).values()) == 0


@pytest.mark.parametrize("name", ["", "a:b", "a b", "x" * 129, "a\n"])
async def test_names_that_would_mix_up_keys_are_refused(queue: JobQueue, name: str) -> None:
    with pytest.raises(ValueError):
        await submit(queue, tenant=name)
    with pytest.raises(ValueError):
        await submit(queue, name or "\0")
    with pytest.raises(ValueError):
        await queue.claim(Stage.RENDER, worker=name)


async def test_position_counts_the_jobs_of_the_stage_that_were_queued_earlier(queue: JobQueue) -> None:
    await submit(queue, "p", stage=Stage.PROMPT)
    for job_id, lane in (("a", Lane.BATCH), ("b", Lane.INTERACTIVE), ("c", Lane.BATCH)):
        await submit(queue, job_id, lane=lane)
    positions = {}
    for job_id in "pabc":
        place = (await queue.get(job_id)).queue
        assert place is not None
        positions[job_id] = place.position
    assert positions == {"p": 0, "a": 0, "b": 1, "c": 2}
    assert await queue.depth() == {
        (Stage.PROMPT, Lane.INTERACTIVE): 1,
        (Stage.PROMPT, Lane.BATCH): 0,
        (Stage.RENDER, Lane.INTERACTIVE): 1,
        (Stage.RENDER, Lane.BATCH): 2,
    }


async def test_job_of_another_tenant_is_not_found(queue: JobQueue) -> None:
    await submit(queue, "j1", tenant="a")
    assert (await queue.get("j1", tenant="a")).id == "j1"
    for call in (queue.get, queue.cancel, queue.approve):
        with pytest.raises(NotFound):
            await call("j1", tenant="b")
        with pytest.raises(NotFound):
            await call("nothing", tenant="a")


@pytest.mark.parametrize("state", ["queued", "running", "awaiting_approval"])
async def test_cancel_is_final_at_once(queue: JobQueue, state: str) -> None:
    await submit(queue, "j1", stage=Stage.PROMPT, approve=True)
    if state != "queued":
        taken = await claim(queue, Stage.PROMPT)
        if state == "awaiting_approval":
            await taken.advance(prompt())
    assert (await queue.get("j1")).status == state
    canceled = await queue.cancel("j1")
    assert canceled.status is JobStatus.CANCELED
    assert canceled == await queue.cancel("j1") == await queue.get("j1")
    assert (await stored_events(queue, "j1"))[-1] == "job.canceled"
    assert await queue.claim(Stage.PROMPT, worker="w") is None
    await check_consistency(queue)


async def test_late_result_does_not_revive_a_canceled_job(queue: JobQueue) -> None:
    await submit(queue, "j1")
    taken = await claim(queue)
    await queue.cancel("j1")
    with pytest.raises(LeaseLost):
        await taken.finish([image()])
    job = await queue.get("j1")
    assert (job.status, job.images) == (JobStatus.CANCELED, [])


async def test_ended_job_is_not_changed_by_cancel(queue: JobQueue) -> None:
    await submit(queue, "j1")
    await (await claim(queue)).finish([image()])
    before = await queue.get("j1")
    assert await queue.cancel("j1") == before
    assert (await stored_events(queue, "j1"))[-1] == "job.succeeded"


async def held(queue: JobQueue, **fields: Any) -> None:
    """Bring job `j1` to where it waits for approval."""
    await submit(queue, "j1", stage=Stage.PROMPT, approve=True, **fields)
    await (await claim(queue, Stage.PROMPT)).advance(prompt("what was written"))


async def test_approved_job_is_rendered_with_its_prompt(queue: JobQueue) -> None:
    await held(queue)
    assert await queue.claim(Stage.RENDER, worker="w") is None
    approved = await queue.approve("j1")
    assert (approved.status, approved.stage) == (JobStatus.QUEUED, Stage.RENDER)
    assert await queue.approve("j1") == approved
    taken = await claim(queue)
    assert taken.job.prompt == prompt("what was written")
    await queue.approve("j1")  # the same approval, later
    await check_consistency(queue)


async def test_edited_prompt_is_rendered(queue: JobQueue) -> None:
    await held(queue)
    await queue.approve("j1", prompt_text="what I want")
    await queue.approve("j1", prompt_text="what I want")
    with pytest.raises(NotAwaitingApproval):
        await queue.approve("j1", prompt_text="something else")
    taken = await claim(queue)
    assert taken.job.prompt is not None
    assert (taken.job.prompt.text, taken.job.prompt.source) == ("what I want", "edited")


async def test_caption_of_the_picture_outlives_an_edit_of_the_prompt(queue: JobQueue) -> None:
    await submit(queue, "j1", stage=Stage.PROMPT, approve=True)
    written = prompt("what was written").model_copy(update={"source_caption": "a/hill “é”"})
    await (await claim(queue, Stage.PROMPT)).advance(written)
    await queue.approve("j1", prompt_text="what I want")
    taken = await claim(queue)
    assert taken.job.prompt is not None
    assert (taken.job.prompt.text, taken.job.prompt.source_caption) == ("what I want", "a/hill “é”")


async def test_sending_the_same_text_back_is_no_edit(queue: JobQueue) -> None:
    await held(queue)
    await queue.approve("j1", prompt_text="what was written")
    assert (await claim(queue)).job.prompt == prompt("what was written")


async def test_only_held_jobs_can_be_approved(queue: JobQueue) -> None:
    await submit(queue, "j1", stage=Stage.PROMPT, approve=True)
    with pytest.raises(NotAwaitingApproval):
        await queue.approve("j1")
    await queue.cancel("j1")
    with pytest.raises(NotAwaitingApproval):
        await queue.approve("j1")


async def test_prompt_that_is_never_approved_is_dropped(queue: JobQueue) -> None:
    await held(queue)
    await queue.redis.zadd(f"{queue.scripts.base}deadlines", {"j1": 1}, xx=True)
    assert await queue.reap() == 1
    job = await queue.get("j1")
    assert job.status is JobStatus.FAILED
    assert job.error is not None
    assert job.error.code == "deadline_exceeded"
    await check_consistency(queue)


async def test_deadline_is_kept_while_a_prompt_waits_for_approval(queue: JobQueue) -> None:
    await held(queue, deadline_s=60)
    deadline = await queue.redis.zscore(f"{queue.scripts.base}deadlines", "j1")
    job = await queue.get("j1")
    assert deadline == pytest.approx((job.created_at + 60) * 1000, abs=1)


async def test_reaper_drops_expired_deadlines_of_waiting_jobs_only(queue: JobQueue) -> None:
    await submit(queue, "running", deadline_s=60)
    taken = await claim(queue)
    await submit(queue, "waiting", deadline_s=60)
    await submit(queue, "patient")
    await pass_deadline(queue, "waiting")
    await queue.redis.hset(queue.job_key("running"), "deadline", "1")
    assert await queue.reap() == 1
    assert (await queue.get("waiting")).status is JobStatus.FAILED
    assert (await queue.get("patient")).status is JobStatus.QUEUED
    await taken.finish([])  # never after it was started
    await check_consistency(queue)


async def test_deadline_still_holds_when_a_lost_job_is_queued_again(queue: JobQueue) -> None:
    await submit(queue, "j1", deadline_s=60)
    await claim(queue)
    await end_lease(queue, "j1")
    await queue.reap()
    await pass_deadline(queue, "j1")
    assert await queue.claim(Stage.RENDER, worker="w") is None
    assert (await queue.get("j1")).status is JobStatus.FAILED
