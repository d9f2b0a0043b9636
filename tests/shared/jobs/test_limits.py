"""A tenant's limits at the queue: what they count, when it comes back, and what is given back."""

import asyncio
from typing import Any, cast

import pytest

from shared.contracts import GenerationRequest, JobStatus, PromptMode, Stage
from shared.contracts.limits import UNIT, UNLIMITED, Charge, Left, Limits, Standing
from shared.errors import IdempotencyConflict, QueueFull, QuotaExceeded, RateLimited, RenderFailed, TooManyJobs
from shared.jobs import JobQueue, Submitted
from shared.settings import RedisSettings
from tests.shared.jobs.steps import (
    body_hash,
    claim,
    end_lease,
    image,
    new_id,
    pass_server_time,
    prompt,
    queue_with,
    submit,
)

CHARGE = Charge(prompt=UNIT, render=10 * UNIT)
DAILY = UNLIMITED.model_copy(update={"units_per_day": 1_000})


async def spent(queue: JobQueue, tenant: str = "default") -> int:
    """Return the whole units that a tenant was charged, whatever the day."""
    pattern = queue.job_key("").replace("{", "[{]").removesuffix("job:") + f"spent:{tenant}:*"
    keys = [key async for key in queue.redis.scan_iter(pattern)]
    assert len(keys) <= 1
    amounts = [int(cast(str, await queue.redis.get(key))) for key in keys]
    return sum(amounts) // UNIT


async def charged(queue: JobQueue, job_id: str, **fields: Any) -> None:
    fields.setdefault("stage", Stage.PROMPT)
    await submit(queue, job_id, limits=DAILY, charge=CHARGE, **fields)


async def resubmitted(queue: JobQueue, limits: Limits, **fields: Any) -> Submitted:
    """Submit a request directly, to see the standing that comes back."""
    request = GenerationRequest(instruction="a snowman", prompt_mode=PromptMode.VERBATIM)
    return await queue.submit(
        request,
        stage=Stage.RENDER,
        batch_key="sd15",
        body_hash=body_hash(request),
        limits=limits,
        **({"job_id": new_id()} | fields),
    )


async def test_tokens_come_back_with_time(queue: JobQueue) -> None:
    limits = UNLIMITED.model_copy(update={"requests_per_minute": 1_200, "burst": 2})  # one each 50 ms
    outcomes = await asyncio.gather(
        *(queue.spend(tenant="a", limits=limits) for _ in range(500)), return_exceptions=True
    )
    assert any(isinstance(outcome, RateLimited) for outcome in outcomes)
    await pass_server_time(queue.redis, 120)
    for _ in range(2):
        await queue.spend(tenant="a", limits=limits)


async def test_what_is_left_is_told_with_every_answer(queue: JobQueue) -> None:
    limits = Limits(requests_per_minute=1, burst=3, max_jobs=5, units_per_day=20)
    first = await resubmitted(queue, limits, charge=Charge(render=2_500))
    assert first.standing.requests == Left(2, 60)
    assert first.standing.jobs == Left(4)
    assert first.standing.units is not None
    assert first.standing.units.amount == 17
    assert 0 < cast(int, first.standing.units.full_in_s) <= 86_400
    assert (await queue.spend(limits=limits)).requests == Left(1, 120)
    assert (await resubmitted(queue, UNLIMITED)).standing == Standing()


async def test_submissions_and_what_makes_no_job_share_one_bucket(queue: JobQueue) -> None:
    limits = UNLIMITED.model_copy(update={"requests_per_minute": 1, "burst": 2})
    await submit(queue, limits=limits)
    await queue.spend(limits=limits)
    with pytest.raises(RateLimited):
        await queue.spend(limits=limits)
    with pytest.raises(RateLimited):
        await submit(queue, limits=limits)


async def test_hundred_submissions_at_once_take_no_more_than_the_limits_allow(queue: JobQueue) -> None:
    limits = Limits(requests_per_minute=1, burst=60, max_jobs=7)
    outcomes = await asyncio.gather(*(submit(queue, limits=limits) for _ in range(100)), return_exceptions=True)
    assert sum(not isinstance(outcome, BaseException) for outcome in outcomes) == 7
    assert {type(outcome) for outcome in outcomes if isinstance(outcome, BaseException)} == {TooManyJobs}
    assert (await queue.spend(limits=limits)).requests == Left(60 - 7 - 1, 60 * 8)  # refusals took no token


async def test_the_same_submission_again_is_counted_once(queue: JobQueue) -> None:
    limits = Limits(requests_per_minute=1, burst=5, max_jobs=5, units_per_day=1_000)
    for _ in range(3):
        await resubmitted(queue, limits, job_id="j1", charge=CHARGE, idempotency_key="k")
    for job_id in ("j2", "j3"):
        again = await resubmitted(queue, limits, job_id=job_id, charge=CHARGE, idempotency_key="k")
        assert not again.created
    assert await spent(queue) == 11
    assert (await queue.spend(limits=limits)).requests == Left(3, 120)


async def test_known_key_is_found_whatever_the_limits_say(queue: JobQueue) -> None:
    limits = Limits(requests_per_minute=1, burst=1, max_jobs=1, units_per_day=1)
    await resubmitted(queue, limits, job_id="j1", idempotency_key="k", charge=Charge(render=UNIT))
    assert (await resubmitted(queue, limits, idempotency_key="k", charge=Charge(render=UNIT))).job.id == "j1"


async def test_recall_finds_the_job_of_a_key_and_makes_none(queue: JobQueue) -> None:
    made = await resubmitted(queue, UNLIMITED, job_id="j1", idempotency_key="k", tenant="a")
    same = body_hash(made.job.request)
    found = await queue.recall("k", tenant="a", body_hash=same)
    assert found is not None
    assert (found.job.id, found.created) == ("j1", False)
    assert await queue.recall("k", tenant="b", body_hash=same) is None
    assert await queue.recall("new", tenant="a", body_hash=same) is None
    with pytest.raises(IdempotencyConflict):
        await queue.recall("k", tenant="a", body_hash="other")
    assert sum((await queue.depth()).values()) == 1


async def test_job_that_succeeds_is_charged_in_full(queue: JobQueue) -> None:
    await charged(queue, "j1")
    await (await claim(queue, Stage.PROMPT)).advance(prompt())
    await (await claim(queue)).finish([image()])
    assert await spent(queue) == 11


async def test_job_canceled_before_any_worker_had_it_costs_nothing(queue: JobQueue) -> None:
    await charged(queue, "j1")
    await queue.cancel("j1")
    await queue.cancel("j1")  # and is given back once
    assert await spent(queue) == 0


async def test_job_canceled_before_its_rendering_costs_its_prompt(queue: JobQueue) -> None:
    await charged(queue, "j1", approve=True)
    await (await claim(queue, Stage.PROMPT)).advance(prompt())
    assert (await queue.get("j1")).status is JobStatus.AWAITING_APPROVAL
    await queue.cancel("j1")
    assert await spent(queue) == 1


async def test_job_canceled_while_it_renders_is_charged_in_full(queue: JobQueue) -> None:
    await charged(queue, "j1")
    await (await claim(queue, Stage.PROMPT)).advance(prompt())
    await claim(queue)
    await queue.cancel("j1")
    assert await spent(queue) == 11


async def test_job_that_fails_costs_nothing_whatever_was_done(queue: JobQueue) -> None:
    await charged(queue, "j1")
    await (await claim(queue, Stage.PROMPT)).advance(prompt())
    await (await claim(queue)).fail(RenderFailed("It broke."))
    assert await spent(queue) == 0


async def test_job_whose_worker_was_lost_too_often_costs_nothing_and_its_replay_neither(
    queue: JobQueue, redis_settings: RedisSettings
) -> None:
    once = queue_with(queue, redis_settings.namespace, {"max_attempts": 1})
    await charged(once, "j1", stage=Stage.RENDER)
    await claim(once)
    await end_lease(once, "j1")
    await once.reap()
    assert await spent(once) == 0
    limits = UNLIMITED.model_copy(update={"max_jobs": 1})
    await once.replay("j1")
    with pytest.raises(TooManyJobs):  # but it is under way again
        await submit(once, limits=limits)
    await (await claim(once)).finish([image()])
    assert await spent(once) == 0
    await submit(once, limits=limits)


async def test_quota_that_was_given_back_can_be_spent_again(queue: JobQueue) -> None:
    limits = UNLIMITED.model_copy(update={"units_per_day": 11})
    await submit(queue, "j1", limits=limits, charge=CHARGE)
    with pytest.raises(QuotaExceeded, match="0 cost units"):
        await submit(queue, limits=limits, charge=Charge(render=1))
    await queue.cancel("j1")
    await submit(queue, limits=limits, charge=CHARGE)


async def test_full_queue_takes_nothing_from_a_tenant(queue: JobQueue, redis_settings: RedisSettings) -> None:
    narrow = queue_with(queue, redis_settings.namespace, {"max_queued": 1})
    limits = Limits(requests_per_minute=1, burst=5, units_per_day=1_000)
    await submit(narrow, limits=limits, charge=CHARGE)
    with pytest.raises(QueueFull):
        await submit(narrow, limits=limits, charge=CHARGE)
    assert await spent(narrow) == 11
    assert (await narrow.spend(limits=limits)).requests == Left(3, 120)
