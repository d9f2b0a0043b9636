"""Attempts: leases, tokens, retries, dead letters, calls whose answer was lost."""

import pytest

from shared.contracts import EventType, JobStatus, Stage
from shared.errors import InternalError, NotFound, QueueFull, RenderFailed, StoreUnavailable
from shared.jobs import JobQueue, LeaseLost
from shared.settings import RedisSettings
from tests.shared.jobs.steps import (
    check_consistency,
    claim,
    end_lease,
    image,
    prompt,
    queue_with,
    stored_events,
    submit,
)


async def test_expired_lease_is_claimed_by_another_worker(queue: JobQueue) -> None:
    await submit(queue, "j1")
    lost = await claim(queue, worker="a")
    assert await queue.reap() == 0
    assert await queue.claim(Stage.RENDER, worker="b") is None
    await end_lease(queue, "j1")
    assert await queue.reap() == 1
    taken = await claim(queue, worker="b")
    assert (taken.job.id, taken.attempt) == ("j1", 2)
    assert taken.token != lost.token
    assert (await stored_events(queue, "j1")).count(EventType.STARTED) == 2


async def test_nothing_that_a_late_worker_says_is_taken(queue: JobQueue) -> None:
    await submit(queue, "j1", stage=Stage.PROMPT)
    late = await claim(queue, Stage.PROMPT)
    await end_lease(queue, "j1")
    await queue.reap()
    current = await claim(queue, Stage.PROMPT)
    before = await queue.get("j1")
    with pytest.raises(LeaseLost):
        await late.emit(EventType.PROMPT_DELTA, {"text": "late"})
    for answer in (
        (await queue.scripts.advance(job_id="j1", token=late.token, next_step="render", prompt="{}")).outcome,
        (await queue.scripts.finish(job_id="j1", token=late.token, images="[]", prompt="{}")).outcome,
        (await queue.scripts.fail(job_id="j1", token=late.token, retry=False, problem="{}")).outcome,
        (await queue.scripts.release(job_id="j1", token=late.token)).outcome,
        *(await queue.scripts.renew([("j1", late.token), ("nothing", "x")])),
    ):
        assert answer == "lost"
    assert await queue.get("j1") == before
    await current.advance(prompt())


async def test_claim_again_with_the_same_token_is_the_same_attempt(queue: JobQueue) -> None:
    await submit(queue, "j1")
    await submit(queue, "j2")
    first = await claim(queue, token="t1")
    again = await claim(queue, token="t1")
    assert (again.job, again.attempt) == (first.job, 1)
    await again.finish([])
    assert (await claim(queue, token="t1")).job.id == "j2"  # the attempt has ended: a new claim


async def test_end_that_is_told_again_is_not_refused(queue: JobQueue) -> None:
    await submit(queue, "j1", stage=Stage.PROMPT)
    writing = await claim(queue, Stage.PROMPT)
    text = prompt().model_dump_json()
    outcomes = [
        (await queue.scripts.advance(job_id="j1", token=writing.token, next_step="render", prompt=text)).outcome
        for _ in range(2)
    ]
    rendering = await claim(queue)
    outcomes += [
        (await queue.scripts.finish(job_id="j1", token=rendering.token, images="[]", prompt=text)).outcome
        for _ in range(2)
    ]
    assert outcomes == ["ok", "again", "ok", "again"]
    await submit(queue, "j2")
    for operation in ("release", "fail"):
        taken = await claim(queue)
        for expected in ({"ok", "requeued"}, {"again"}):
            if operation == "release":
                reply = await queue.scripts.release(job_id="j2", token=taken.token)
            else:
                reply = await queue.scripts.fail(job_id="j2", token=taken.token, retry=True, problem="{}")
            assert reply.outcome in expected
    assert (await queue.get("j2")).attempts == 1
    await check_consistency(queue)


async def test_claim_says_nothing_after_its_end(queue: JobQueue) -> None:
    await submit(queue, "j1")
    taken = await claim(queue)
    await taken.finish([image()])
    assert taken.ended
    for call in (taken.emit(EventType.RENDER_PROGRESS, {}), taken.release(), taken.fail(RenderFailed("x"))):
        with pytest.raises(LeaseLost):
            await call
    assert not taken.lost.is_set()
    assert (await stored_events(queue, "j1"))[-1] == EventType.SUCCEEDED


async def test_failure_without_retry_ends_the_job_with_its_problem(queue: JobQueue) -> None:
    await submit(queue, "j1")
    await (await claim(queue)).fail(RenderFailed("The picture came out black."))
    job = await queue.get("j1")
    assert (job.status, job.attempts) == (JobStatus.FAILED, 1)
    assert job.error is not None
    assert (job.error.code, job.error.detail) == ("render_failed", "The picture came out black.")
    assert await queue.dead_letters() == []
    await check_consistency(queue)


async def test_failure_with_retry_is_tried_again_until_the_attempts_are_spent(queue: JobQueue) -> None:
    await submit(queue, "j1")
    for attempt in (1, 2, 3):
        taken = await claim(queue)
        assert taken.attempt == attempt
        await taken.fail(StoreUnavailable("The disk is full.", retry_after_s=5), retry=True)
    job = await queue.get("j1")
    assert job.error is not None
    assert (job.status, job.error.code) == (JobStatus.FAILED, "attempts_exhausted")
    assert [letter.id for letter in await queue.dead_letters()] == ["j1"]
    await check_consistency(queue)


async def test_attempts_count_per_stage(queue: JobQueue) -> None:
    await submit(queue, "j1", stage=Stage.PROMPT)
    await (await claim(queue, Stage.PROMPT)).fail(InternalError("x"), retry=True)
    await (await claim(queue, Stage.PROMPT)).advance(prompt())
    assert (await claim(queue)).attempt == 1


async def test_release_counts_no_attempt(queue: JobQueue) -> None:
    await submit(queue, "j1")
    for _ in range(5):
        taken = await claim(queue)
        assert taken.attempt == 1
        await taken.release()
    assert (await queue.get("j1")).status is JobStatus.QUEUED
    await check_consistency(queue)


async def test_events_of_an_attempt_after_a_release_are_not_taken_for_repetitions(queue: JobQueue) -> None:
    await submit(queue, "j1", stage=Stage.PROMPT)
    for text in ("first", "second"):
        taken = await claim(queue, Stage.PROMPT)
        await taken.emit(EventType.PROMPT_DELTA, {"text": text})
        await taken.release()
    assert (await stored_events(queue, "j1")).count(EventType.PROMPT_DELTA) == 2


async def test_dead_letter_can_be_replayed_with_all_its_attempts(queue: JobQueue) -> None:
    await submit(queue, "j1", deadline_s=600)
    for _ in range(3):
        await (await claim(queue)).fail(InternalError("x"), retry=True)
    replayed = await queue.replay("j1")
    assert (replayed.status, replayed.attempts, replayed.error) == (JobStatus.QUEUED, 0, None)
    assert await queue.replay("j1") == replayed  # told again
    assert await queue.dead_letters() == []
    await check_consistency(queue)
    await (await claim(queue)).finish([image()])
    assert await stored_events(queue, "j1") == ["job.queued", "job.started", "job.succeeded"]
    with pytest.raises(NotFound):
        await queue.replay("nothing")


async def test_only_dead_letters_can_be_replayed(queue: JobQueue) -> None:
    await submit(queue, "j1")
    with pytest.raises(NotFound):
        await queue.replay("j1")
    await (await claim(queue)).fail(RenderFailed("x"))
    with pytest.raises(NotFound):
        await queue.replay("j1")


async def test_replay_does_not_overfill_the_queue(queue: JobQueue, redis_settings: RedisSettings) -> None:
    small = queue_with(queue, redis_settings.namespace, {"max_queued": 1, "max_attempts": 1})
    await submit(small, "j1")
    await (await claim(small)).fail(InternalError("x"), retry=True)
    await submit(small, "j2")
    with pytest.raises(QueueFull):
        await small.replay("j1")
    assert [letter.id for letter in await small.dead_letters()] == ["j1"]


async def test_dead_letters_are_trimmed(queue: JobQueue, redis_settings: RedisSettings) -> None:
    strict = queue_with(queue, redis_settings.namespace, {"max_attempts": 1})
    dead = f"{queue.scripts.base}dead"
    now_ms = (await queue.redis.time())[0] * 1000
    await queue.redis.zadd(dead, {f"old{n}": now_ms - n - 1 for n in range(1_000)} | {"ancient": 1})
    await submit(strict, "j1")
    await (await claim(strict)).fail(InternalError("x"), retry=True)
    assert await queue.redis.zcard(dead) == 1_000
    assert await queue.redis.zscore(dead, "ancient") is None
    assert await queue.redis.zscore(dead, "old999") is None
    assert await queue.redis.zscore(dead, "j1") is not None


async def test_progress_of_a_lost_attempt_is_forgotten(queue: JobQueue) -> None:
    await submit(queue, "j1", n=2)
    first = await claim(queue)
    for index, step in ((0, 1), (1, 1), (0, 2)):
        await first.emit(EventType.RENDER_PROGRESS, {"index": index, "step": step, "total_steps": 4})
    progress = (await queue.get("j1")).progress
    assert progress is not None
    assert (progress.step, progress.total_steps) == (3, 8)
    await end_lease(queue, "j1")
    await queue.reap()
    second = await claim(queue)
    assert second.job.progress is None
    await second.emit(EventType.RENDER_PROGRESS, {"index": 0, "step": 1, "total_steps": 4})
    progress = (await queue.get("j1")).progress
    assert progress is not None
    assert progress.step == 1


async def test_losing_a_claim_is_told_once(queue: JobQueue) -> None:
    await submit(queue, "j1")
    taken = await claim(queue)
    told: list[str] = []
    taken.on_lost(lambda: told.append("before"))
    await queue.cancel("j1")
    for _ in range(2):
        with pytest.raises(LeaseLost):
            await taken.emit(EventType.RENDER_PROGRESS, {"index": 0, "step": 1, "total_steps": 4})
    taken.on_lost(lambda: told.append("after"))
    assert told == ["before", "after"]
    assert taken.lost.is_set()
    assert taken.canceled


async def test_reaper_is_not_stopped_by_a_record_that_was_deleted_by_hand(queue: JobQueue) -> None:
    await submit(queue, "j1")
    await submit(queue, "j2")
    for job_id in ("j1", "j2"):
        await claim(queue)
        await end_lease(queue, job_id)
    await queue.redis.delete(queue.job_key("j1"), queue.events_key("j1"))
    assert await queue.reap() == 1
    assert (await claim(queue)).job.id == "j2"
