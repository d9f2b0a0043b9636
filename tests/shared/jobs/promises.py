"""The queue's promises, each as a function that asserts it.

`test_safeguards` runs them on the queue as it is, and on a queue whose scripts lack one line, to show that each
promise rests on its safeguard and that its assertion can fail.
"""

from collections.abc import Awaitable, Callable
from typing import Any, cast

import pytest

from shared.contracts import EventType, JobStatus, Lane, Stage
from shared.contracts.limits import UNIT, UNLIMITED, Charge, Left
from shared.errors import IdempotencyConflict, LimitExceeded, QueueFull, QuotaExceeded, RateLimited, TooManyJobs
from shared.jobs import JobCanceled, JobQueue, LeaseLost
from tests.shared.jobs.steps import (
    claim,
    claimed_ids,
    end_lease,
    image,
    pass_deadline,
    prompt,
    stored_events,
    submit,
)
from tests.shared.sessions.promises import SESSION_PROMISES
from tests.shared.webhooks.promises import wanted_events_are_sent_and_no_others

Promise = Callable[[JobQueue], Awaitable[None]]


async def late_result_changes_nothing(queue: JobQueue) -> None:
    """What a worker says with a token that is no longer current is refused."""
    await submit(queue, "j1")
    late = await claim(queue, worker="late")
    await end_lease(queue, "j1")
    await queue.reap()
    current = await claim(queue, worker="current")
    with pytest.raises(LeaseLost):
        await late.finish([image(7)])
    await current.finish([image(0)])
    job = await queue.get("j1")
    assert [one.index for one in job.images] == [0]


async def ended_lease_is_refused_before_it_is_reaped(queue: JobQueue) -> None:
    """A worker that was silent for a whole lease cannot go on, even when nobody has noticed yet."""
    await submit(queue, "j1")
    late = await claim(queue)
    await end_lease(queue, "j1")
    with pytest.raises(LeaseLost):
        await late.finish([image()])
    assert (await queue.get("j1")).status is JobStatus.RUNNING


async def renewed_lease_is_not_taken(queue: JobQueue) -> None:
    """A job is never taken from a worker that renews, however long it runs."""
    await submit(queue, "j1")
    current = await claim(queue)
    leases = f"{queue.scripts.base}leases"
    soon = cast(float, await queue.redis.zscore(leases, "j1")) - queue.settings.lease_ms / 2
    await queue.redis.zadd(leases, {"j1": soon})
    assert await queue.scripts.renew([("j1", current.token)]) == ["ok"]
    assert cast(float, await queue.redis.zscore(leases, "j1")) > soon


async def worker_of_a_canceled_job_is_told(queue: JobQueue) -> None:
    """The next word of a canceled job's worker is refused with the reason."""
    await submit(queue, "j1")
    current = await claim(queue)
    await queue.cancel("j1")
    with pytest.raises(LeaseLost) as refusal:
        await current.emit(EventType.RENDER_PROGRESS, {"index": 0, "step": 1, "total_steps": 4})
    assert refusal.type is JobCanceled


async def job_fails_after_its_attempts(queue: JobQueue) -> None:
    """A job whose worker is lost as often as allowed fails, and is kept as a dead letter."""
    await submit(queue, "j1")
    for attempt in range(1, queue.settings.max_attempts + 1):
        taken = await claim(queue)
        assert taken.attempt == attempt
        await end_lease(queue, "j1")
        await queue.reap()
    job = await queue.get("j1")
    assert job.status is JobStatus.FAILED
    assert job.error is not None
    assert job.error.code == "attempts_exhausted"
    assert [one.id for one in await queue.dead_letters()] == ["j1"]


async def submission_is_idempotent_by_key(queue: JobQueue) -> None:
    """The same key makes one job; with another body it is refused."""
    first = await submit(queue, "j1", idempotency_key="k")
    second = await submit(queue, "j2", idempotency_key="k")
    assert second.id == first.id
    assert sum((await queue.depth()).values()) == 1
    with pytest.raises(IdempotencyConflict):
        await submit(queue, "j3", idempotency_key="k", instruction="something else")


async def queue_has_a_bound(queue: JobQueue) -> None:
    """No more jobs wait than allowed; running ones do not count."""
    for _ in range(queue.settings.max_queued):
        await submit(queue)
    with pytest.raises(QueueFull):
        await submit(queue)
    await claim(queue)
    await submit(queue)


async def expired_deadline_is_dropped_before_it_runs(queue: JobQueue) -> None:
    """A worker never gets a job whose deadline has passed, also when nobody has reaped it."""
    await submit(queue, "j1", deadline_s=60)
    await submit(queue, "j2")
    await pass_deadline(queue, "j1")
    assert (await claim(queue)).job.id == "j2"
    job = await queue.get("j1")
    assert job.status is JobStatus.FAILED
    assert job.error is not None
    assert job.error.code == "deadline_exceeded"


async def batch_work_ages(queue: JobQueue) -> None:
    """Overdue batch work gets every fourth claim, whatever the interactive lane holds."""
    for number in range(8):
        await submit(queue, f"i{number}")
    for number in range(2):
        await submit(queue, f"b{number}", lane=Lane.BATCH)
    ids = await claimed_ids(queue, 10)
    assert ids == ["i0", "i1", "i2", "b0", "i3", "i4", "i5", "b1", "i6", "i7"]


async def tenants_take_turns(queue: JobQueue) -> None:
    """A tenant with many jobs does not make another wait for all of them."""
    for number in range(3):
        await submit(queue, f"a{number}", tenant="a")
    for number in range(2):
        await submit(queue, f"b{number}", tenant="b")
    assert await claimed_ids(queue, 5) == ["a0", "b0", "a1", "b1", "a2"]


async def events_have_a_bound(queue: JobQueue) -> None:
    """A job keeps its latest events only, whether they come alone or together."""
    bound = queue.settings.max_events
    await submit(queue, "j1", stage=Stage.PROMPT)
    current = await claim(queue, Stage.PROMPT)
    await current.emit_many([(EventType.PROMPT_DELTA, {"text": str(n)}) for n in range(bound + 10)])
    assert len(await stored_events(queue, "j1")) == bound
    await current.advance(prompt())
    kept = await stored_events(queue, "j1")
    assert len(kept) == bound
    assert kept[-2:] == [EventType.PROMPT_COMPLETED, EventType.QUEUED]


async def repeated_emit_appends_nothing(queue: JobQueue) -> None:
    """A call that is sent again after its answer was lost leaves one event."""
    await submit(queue, "j1", stage=Stage.PROMPT)
    current = await claim(queue, Stage.PROMPT)
    for _ in range(2):
        answer = await queue.scripts.emit(
            job_id="j1", token=current.token, number=1, events=[("prompt.delta", '{"text":"a"}')]
        )
        assert answer == "ok"
    assert (await stored_events(queue, "j1")).count(EventType.PROMPT_DELTA) == 1


async def ended_jobs_expire(queue: JobQueue) -> None:
    """What is kept of a job that has ended goes away by itself."""
    await submit(queue, "j1")
    await (await claim(queue)).finish([image()])
    for key in (queue.job_key("j1"), queue.events_key("j1")):
        assert 0 < await queue.redis.ttl(key) <= queue.settings.retention_s


async def tenant_cannot_submit_faster_than_its_limit(queue: JobQueue) -> None:
    """A tenant's burst is taken, one more is refused; another tenant is not held back by it."""
    limits = UNLIMITED.model_copy(update={"requests_per_minute": 1, "burst": 2})
    for _ in range(2):
        await submit(queue, tenant="a", limits=limits)
    with pytest.raises(RateLimited) as refusal:
        await submit(queue, tenant="a", limits=limits)
    assert 0 < refusal.value.retry_after_s <= 60
    assert refusal.value.standing.requests is not None
    assert refusal.value.standing.requests.amount == 0
    await submit(queue, tenant="b", limits=limits)


async def tenant_has_no_more_jobs_than_its_limit(queue: JobQueue) -> None:
    """Running jobs count too."""
    limits = UNLIMITED.model_copy(update={"max_jobs": 2})
    for _ in range(2):
        await submit(queue, tenant="a", limits=limits)
    await claim(queue)
    with pytest.raises(TooManyJobs) as refusal:
        await submit(queue, tenant="a", limits=limits)
    assert refusal.value.standing.jobs == Left(0)
    await submit(queue, tenant="b", limits=limits)


async def ended_jobs_make_room(queue: JobQueue) -> None:
    """Whatever way a job ends, its tenant may have another one."""
    limits = UNLIMITED.model_copy(update={"max_jobs": 1})
    assert await _is_taken(queue, "j1", limits=limits)
    await (await claim(queue)).finish([image()])
    assert await _is_taken(queue, "j2", limits=limits)
    await queue.cancel("j2")
    assert await _is_taken(queue, "j3", limits=limits, deadline_s=60)
    await pass_deadline(queue, "j3")
    await queue.reap()
    assert await _is_taken(queue, "j4", limits=limits)


async def tenant_cannot_spend_more_than_its_quota(queue: JobQueue) -> None:
    """A job that costs more than is left is refused; a cheaper one is taken."""
    limits = UNLIMITED.model_copy(update={"units_per_day": 2.5})
    await submit(queue, tenant="a", limits=limits, charge=Charge(render=2 * UNIT))
    with pytest.raises(QuotaExceeded) as refusal:
        await submit(queue, tenant="a", limits=limits, charge=Charge(render=UNIT))
    assert 0 < refusal.value.retry_after_s <= 86_400
    await submit(queue, tenant="a", limits=limits, charge=Charge(render=UNIT // 2))
    await submit(queue, tenant="b", limits=limits, charge=Charge(render=2 * UNIT))


async def work_that_was_not_begun_is_given_back(queue: JobQueue) -> None:
    """A job that is canceled before a worker had it costs nothing."""
    limits = UNLIMITED.model_copy(update={"units_per_day": 1})
    for number in range(3):
        assert await _is_taken(queue, f"j{number}", limits=limits, charge=Charge(render=UNIT))
        await queue.cancel(f"j{number}")


async def list_forgets_what_is_no_longer_kept(queue: JobQueue) -> None:
    """A job leaves its tenant's list when its record has expired, at the latest when the next job ends."""
    for job_id in ("j1", "j2"):
        await submit(queue, job_id, tenant="a")
    await (await claim(queue)).finish([image()])
    await queue.redis.delete(queue.job_key("j1"), queue.events_key("j1"))  # as its retention would
    await queue.redis.zadd(f"{queue.scripts.base}ended:a", {"j1": 1}, xx=True)
    await queue.cancel("j2", tenant="a")
    for name in ("jobs", "ended"):
        assert await cast(Any, queue.redis.zrange(f"{queue.scripts.base}{name}:a", 0, -1)) == ["j2"]


async def list_of_ended_jobs_expires(queue: JobQueue) -> None:
    """Nothing is left of a tenant that has not come back."""
    await submit(queue, tenant="a")
    await submit(queue, tenant="a")
    await queue.cancel((await claim(queue)).job.id, tenant="a")
    await (await claim(queue)).finish([image()])
    for name in ("jobs", "ended"):
        assert 0 < await queue.redis.ttl(f"{queue.scripts.base}{name}:a") <= queue.settings.retention_s


async def list_stays_while_a_job_is_under_way(queue: JobQueue) -> None:
    """A job that waits for longer than ended ones are kept is still in the list."""
    await submit(queue, "j1", tenant="a")
    await (await claim(queue)).finish([image()])
    await submit(queue, "j2", tenant="a")
    for name in ("jobs", "ended"):
        assert await queue.redis.ttl(f"{queue.scripts.base}{name}:a") == -1


async def _is_taken(queue: JobQueue, job_id: str, **fields: Any) -> bool:
    try:
        await submit(queue, job_id, **fields)
    except LimitExceeded:
        return False
    return True


# Safeguard (the words after `-- safeguard:` in the Lua files) -> the promise that rests on it, and its settings.
PROMISES: dict[str, tuple[Promise, dict[str, int]]] = {
    "token": (late_result_changes_nothing, {}),
    "lease end": (ended_lease_is_refused_before_it_is_reaped, {}),
    "lease renewal": (renewed_lease_is_not_taken, {}),
    "cancel": (worker_of_a_canceled_job_is_told, {}),
    "attempt limit": (job_fails_after_its_attempts, {"max_attempts": 3}),
    "idempotency": (submission_is_idempotent_by_key, {}),
    "queue bound": (queue_has_a_bound, {"max_queued": 5}),
    "deadline": (expired_deadline_is_dropped_before_it_runs, {}),
    "ageing": (batch_work_ages, {"ageing_ms": 0}),
    "tenant round robin": (tenants_take_turns, {}),
    "event bound": (events_have_a_bound, {"max_events": 64}),
    "emit once": (repeated_emit_appends_nothing, {}),
    "retention": (ended_jobs_expire, {"retention_s": 60}),
    "rate limit": (tenant_cannot_submit_faster_than_its_limit, {}),
    "job limit": (tenant_has_no_more_jobs_than_its_limit, {}),
    "ended jobs do not count": (ended_jobs_make_room, {}),
    "quota": (tenant_cannot_spend_more_than_its_quota, {}),
    "refund": (work_that_was_not_begun_is_given_back, {}),
    "list end": (list_forgets_what_is_no_longer_kept, {}),
    "list retention": (list_of_ended_jobs_expires, {"retention_s": 60}),
    "list of jobs under way": (list_stays_while_a_job_is_under_way, {}),
    "wanted events": (wanted_events_are_sent_and_no_others, {}),
} | SESSION_PROMISES
