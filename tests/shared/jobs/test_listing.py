"""A tenant's list: all its jobs that are kept, in pages that neither miss nor repeat one, at a bounded cost."""

from typing import Any, cast

from shared.contracts import GenerationPrompt, JobStatus, PromptMode, Stage, Task
from shared.jobs import JobQueue
from shared.settings import RedisSettings
from tests.shared.jobs.steps import check_consistency, claim, end_lease, image, prompt, queue_with, submit


async def listed(queue: JobQueue, limit: int = 100, **wanted: Any) -> list[str]:
    """Return the ids of all jobs, page by page."""
    ids: list[str] = []
    page = await queue.list_jobs(limit=limit, **wanted)
    while True:
        assert len(page.data) <= limit
        ids += [job.id for job in page.data]
        if page.next is None:
            return ids
        page = await queue.list_jobs(limit=limit, after=page.next, **wanted)


async def submitted(queue: JobQueue, count: int, **fields: Any) -> list[str]:
    """Submit that many jobs; return their ids, the latest first."""
    return [(await submit(queue, **fields)).id for _ in range(count)][::-1]


async def test_pages_hold_every_job_once_the_latest_first(queue: JobQueue) -> None:
    ids = await submitted(queue, 7)
    for limit in (1, 2, 3, 6, 7, 8, 100):
        assert await listed(queue, limit) == ids
    page = await queue.list_jobs(limit=7)
    assert page.next is None  # the last page says so
    assert [job.queue is not None and job.queue.position for job in page.data] == [6, 5, 4, 3, 2, 1, 0]


async def test_jobs_that_come_meanwhile_move_nothing(queue: JobQueue) -> None:
    ids = await submitted(queue, 5)
    page = await queue.list_jobs(limit=2)
    await submitted(queue, 3)
    rest = await queue.list_jobs(limit=100, after=page.next)
    assert [job.id for job in [*page.data, *rest.data]] == ids


async def test_list_holds_the_records_themselves(queue: JobQueue) -> None:
    await submit(queue, "j1")
    await (await claim(queue)).finish([image()])
    await submit(queue, "j2", stage=Stage.PROMPT, approve=True)
    await (await claim(queue, Stage.PROMPT)).advance(prompt())
    await submit(queue, "j3")
    await claim(queue)
    page = await queue.list_jobs(limit=3)
    assert page.data == [await queue.get(job_id) for job_id in ("j3", "j2", "j1")]


async def test_filters_select_by_status_and_task(queue: JobQueue) -> None:
    pictures = await submitted(queue, 4)
    prompts = await submitted(queue, 3, stage=Stage.PROMPT, task=Task.PROMPT)
    for job_id in (pictures[0], prompts[0]):
        await queue.cancel(job_id)
    for limit in (1, 2, 100):
        assert await listed(queue, limit, task=Task.PROMPT) == prompts
        assert await listed(queue, limit, status=JobStatus.CANCELED) == [prompts[0], pictures[0]]
        assert await listed(queue, limit, status=JobStatus.QUEUED, task=Task.TEXT_TO_IMAGE) == pictures[1:]
        assert await listed(queue, limit, status=JobStatus.FAILED) == []


async def test_tenants_see_their_own_jobs_alone(queue: JobQueue) -> None:
    ids = {tenant: await submitted(queue, 3, tenant=tenant) for tenant in ("a", "b")}
    for tenant, own in ids.items():
        assert await listed(queue, tenant=tenant) == own
    assert await listed(queue, tenant="c") == []


async def test_job_whose_record_is_gone_is_passed_over(queue: JobQueue) -> None:
    ids = await submitted(queue, 5)
    for job_id in (ids[0], ids[2], ids[4]):
        await queue.cancel(job_id)
        await queue.redis.delete(queue.job_key(job_id), queue.events_key(job_id))  # as its retention would
    for limit in (1, 2, 3):
        assert await listed(queue, limit) == [ids[1], ids[3]]


async def test_replayed_job_keeps_its_place_in_the_list(queue: JobQueue, redis_settings: RedisSettings) -> None:
    once = queue_with(queue, redis_settings.namespace, {"max_attempts": 1})
    await submit(once, "j1")
    await claim(once)
    await end_lease(once, "j1")
    await once.reap()
    await submit(once, "j2")
    await once.cancel("j2")
    await once.replay("j1")
    assert await listed(once) == ["j2", "j1"]
    await check_consistency(once)  # and stays in it for as long as it takes


async def test_page_of_long_prompts_ends_early_and_the_next_one_goes_on(queue: JobQueue) -> None:
    text = GenerationPrompt(text="x" * 60_000, source="verbatim")
    ids: list[str] = []
    for _ in range(8):
        job = await submit(queue, stage=Stage.PROMPT, prompt_mode=PromptMode.REFINE)
        ids.insert(0, job.id)
        await cast(Any, queue.redis.hset(queue.job_key(job.id), "prompt", text.model_dump_json()))
    page = await queue.list_jobs(limit=100)
    assert 4 <= len(page.data) < 8
    assert page.next is not None
    assert await listed(queue) == ids


async def test_filter_looks_through_a_bounded_number_of_jobs_per_call(queue: JobQueue) -> None:
    oldest = await submitted(queue, 1, stage=Stage.PROMPT, task=Task.PROMPT)
    place = int((await cast(Any, queue.redis.hgetall(queue.job_key(oldest[0]))))["place"])
    gone = {f"gone{number}": place + 1 + number for number in range(2_000)}  # as cheap to pass over as other tasks
    await queue.redis.zadd(f"{queue.scripts.base}jobs:default", gone)
    page = await queue.list_jobs(limit=20, task=Task.PROMPT)
    assert (page.data, page.next) == ([], str(place + 1_001))
    assert await listed(queue, 20, task=Task.PROMPT) == oldest
