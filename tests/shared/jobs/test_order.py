"""Who is next: lanes, tenants, batch keys, places."""

from shared.contracts import Lane, Stage
from shared.jobs import JobQueue
from shared.settings import RedisSettings
from tests.shared.jobs.steps import (
    check_consistency,
    claim,
    claimed_ids,
    end_lease,
    prompt,
    queue_with,
    submit,
)


async def test_first_in_is_first_out_within_a_tenant(queue: JobQueue) -> None:
    for number in range(20):
        await submit(queue, f"j{number}")
    assert await claimed_ids(queue, 20) == [f"j{number}" for number in range(20)]


async def test_a_claim_says_how_many_jobs_of_its_stage_are_left(queue: JobQueue) -> None:
    for number in range(2):
        await submit(queue, f"i{number}", lane=Lane.INTERACTIVE)
        await submit(queue, f"b{number}", lane=Lane.BATCH)
    lefts = []
    for _ in range(4):
        taken = await queue.claim(Stage.RENDER, worker="worker-1")
        assert taken is not None
        lefts.append(taken.left)
    assert lefts == [3, 2, 1, 0]


async def test_interactive_work_goes_before_batch_work(queue: JobQueue) -> None:
    await submit(queue, "b", lane=Lane.BATCH)
    await submit(queue, "i", lane=Lane.INTERACTIVE)
    assert await claimed_ids(queue, 2) == ["i", "b"]


async def test_overdue_batch_work_does_not_starve_interactive_work(
    queue: JobQueue, redis_settings: RedisSettings
) -> None:
    aged = queue_with(queue, redis_settings.namespace, {"ageing_ms": 0})
    for number in range(6):
        await submit(aged, f"b{number}", lane=Lane.BATCH)
    for number in range(4):
        await submit(aged, f"i{number}")
    ids = await claimed_ids(aged, 10)
    assert ids == ["i0", "i1", "i2", "b0", "i3", "b1", "b2", "b3", "b4", "b5"]


async def test_overdue_batch_work_of_a_quiet_tenant_is_seen(queue: JobQueue, redis_settings: RedisSettings) -> None:
    # The oldest batch job decides, not the one whose tenant has the turn.
    aged = queue_with(queue, redis_settings.namespace, {"ageing_ms": 0})
    await submit(aged, "quiet", tenant="quiet", lane=Lane.BATCH)
    for number in range(3):
        await submit(aged, f"b{number}", tenant="busy", lane=Lane.BATCH)
    for number in range(12):
        await submit(aged, f"i{number}")
    assert "quiet" in await claimed_ids(aged, 8)


async def test_tenant_that_comes_back_joins_at_the_end(queue: JobQueue) -> None:
    await submit(queue, "a0", tenant="a")
    await submit(queue, "b0", tenant="b")
    await submit(queue, "c0", tenant="c")
    assert await claimed_ids(queue, 1) == ["a0"]
    await submit(queue, "a1", tenant="a")
    assert await claimed_ids(queue, 3) == ["b0", "c0", "a1"]


async def test_claim_may_name_the_batch_keys_that_it_can_join(queue: JobQueue) -> None:
    await submit(queue, "other", batch_key="other", tenant="a")
    await submit(queue, "x1", batch_key="x", tenant="a")
    await submit(queue, "y1", batch_key="y", tenant="b")
    assert await queue.claim(Stage.RENDER, worker="w", batch_keys=["nothing"]) is None
    assert await queue.claim(Stage.RENDER, worker="w", batch_keys=[]) is None
    taken = await claim(queue, batch_keys=["y", "x"])
    assert (taken.job.id, taken.batch_key) == ("x1", "x")
    assert (await claim(queue, batch_keys=["y", "x"])).job.id == "y1"
    assert await queue.claim(Stage.RENDER, worker="w", batch_keys=["y", "x"]) is None
    assert (await claim(queue)).job.id == "other"
    await check_consistency(queue)


async def test_tenants_take_turns_also_when_batch_keys_are_named(queue: JobQueue) -> None:
    for number in range(3):
        await submit(queue, f"a{number}", tenant="a", batch_key="x")
    await submit(queue, "b0", tenant="b", batch_key="other")
    await submit(queue, "b1", tenant="b", batch_key="x")
    assert await claimed_ids(queue, 4, batch_keys=["x"]) == ["a0", "b1", "a1", "a2"]


async def test_job_that_comes_back_keeps_its_place(queue: JobQueue) -> None:
    for number in range(3):
        await submit(queue, f"j{number}")
    await claim(queue)
    await end_lease(queue, "j0")
    await queue.reap()
    assert await claimed_ids(queue, 3) == ["j0", "j1", "j2"]


async def test_order_of_submission_holds_in_the_render_stage_too(queue: JobQueue) -> None:
    await submit(queue, "j1", stage=Stage.PROMPT)
    await submit(queue, "j2", stage=Stage.PROMPT)
    first, second = await claim(queue, Stage.PROMPT), await claim(queue, Stage.PROMPT)
    await second.advance(prompt())
    await first.advance(prompt())
    assert await claimed_ids(queue, 2) == ["j1", "j2"]


async def test_stages_do_not_mix(queue: JobQueue) -> None:
    await submit(queue, "p", stage=Stage.PROMPT)
    assert await queue.claim(Stage.RENDER, worker="w") is None
    assert (await claim(queue, Stage.PROMPT)).job.id == "p"
