"""Sessions beside a real queue."""

from collections.abc import Callable

import pytest

from shared.contracts import JobStatus, Stage
from shared.contracts.sessions import Session
from shared.errors import Gone, IdempotencyConflict, NotFound
from shared.jobs import JobQueue, connect
from shared.settings import QueueSettings, RedisSettings
from tests.shared.jobs.steps import claim, image, prompt
from tests.shared.sessions.turns import add_turn, new_session, store_of
from tests.valkey import Server


async def test_a_new_session_has_no_turns_and_a_time_at_which_it_goes_away(queue: JobQueue) -> None:
    store = store_of(queue, retention_s=100)
    made = await new_session(store, name="the house")
    session = await store.get(made.id, tenant="default")
    assert (session.name, session.turns, session.turn_count) == ("the house", [], 0)
    assert session.expires_at == pytest.approx(session.created_at + 100)


async def test_turns_are_numbered_in_the_order_of_submission_and_their_jobs_say_so(queue: JobQueue) -> None:
    store = store_of(queue)
    made = await new_session(store)
    jobs = [(await add_turn(queue, store, made.id, parent=parent)).job for parent in (None, 1, 1)]
    assert [(job.session_id, job.turn) for job in jobs] == [(made.id, 1), (made.id, 2), (made.id, 3)]
    session = await store.get(made.id, tenant="default")
    assert [(turn.id, turn.parent, turn.job_id) for turn in session.turns] == [
        (1, None, jobs[0].id),
        (2, 1, jobs[1].id),
        (3, 1, jobs[2].id),
    ]
    assert (await queue.get(jobs[2].id)).turn == 3


async def test_a_turn_shows_what_its_job_is_now(queue: JobQueue) -> None:
    store = store_of(queue)
    made = await new_session(store)
    await add_turn(queue, store, made.id)

    async def status() -> JobStatus:
        return (await store.get(made.id, tenant="default")).turns[0].status

    assert await status() is JobStatus.QUEUED
    writing = await claim(queue, Stage.PROMPT)
    assert await status() is JobStatus.RUNNING
    await writing.advance(prompt())
    await (await claim(queue)).finish([image(0), image(1)])
    assert await status() is JobStatus.SUCCEEDED
    assert [one.index for one in (await store.get(made.id, tenant="default")).turns[0].images] == [0, 1]


async def test_a_submission_that_comes_again_adds_no_turn(queue: JobQueue) -> None:
    store = store_of(queue)
    made = await new_session(store)
    first = await add_turn(queue, store, made.id, job_id="job_1", key="k")
    again = await add_turn(queue, store, made.id, job_id="job_1", key="k")  # its answer was lost
    later = await add_turn(queue, store, made.id, job_id="job_2", key="k")
    assert (again.job.turn, later.job.turn, later.created) == (first.job.turn, first.job.turn, False)
    assert len((await store.get(made.id, tenant="default")).turns) == 1


async def test_a_session_s_key_makes_one_session_and_no_job(queue: JobQueue) -> None:
    store = store_of(queue)
    first = await new_session(store, key="k")
    assert (await new_session(store, key="k")).id == first.id
    with pytest.raises(IdempotencyConflict):
        await new_session(store, key="k", name="another")
    with pytest.raises(IdempotencyConflict):
        await add_turn(queue, store, first.id, key="k")
    await store.delete(first.id, tenant="default")
    with pytest.raises(Gone):
        await new_session(store, key="k")


async def test_a_deleted_session_is_gone_and_its_jobs_go_on(queue: JobQueue) -> None:
    store = store_of(queue)
    made = await new_session(store)
    job = (await add_turn(queue, store, made.id)).job
    await store.delete(made.id, tenant="default")
    with pytest.raises(NotFound):
        await store.get(made.id, tenant="default")
    with pytest.raises(NotFound):
        await store.delete(made.id, tenant="default")
    await (await claim(queue, Stage.PROMPT)).advance(prompt())
    await (await claim(queue)).finish([image()])
    assert (await queue.get(job.id)).status is JobStatus.SUCCEEDED
    assert await queue.redis.exists(f"{queue.scripts.base}turns:{made.id}") == 0


async def test_sessions_are_listed_page_by_page_the_latest_first(queue: JobQueue) -> None:
    store = store_of(queue)
    made = [(await new_session(store)).id for _ in range(5)]
    listed: list[str] = []
    after: str | None = None
    while True:
        page = await store.list_sessions(tenant="default", limit=2, after=after)
        listed += [session.id for session in page.data]
        after = page.next
        if after is None:
            break
    assert listed == made[::-1]


async def test_sessions_survive_the_death_of_their_server(
    start_server: Callable[..., Server], queue_settings: QueueSettings
) -> None:
    server = start_server()
    settings = RedisSettings(url=server.url)

    async def look(session_id: str | None) -> Session:
        client = await connect(settings)
        queue = JobQueue(client, queue_settings, settings.namespace)
        store = store_of(queue)
        if session_id is None:
            session_id = (await new_session(store, name="the house")).id
            await add_turn(queue, store, session_id)
            await (await claim(queue, Stage.PROMPT)).advance(prompt())
            await (await claim(queue)).finish([image()])
            await add_turn(queue, store, session_id, parent=1)
        session = await store.get(session_id, tenant="default")
        await client.aclose()
        return session

    before = await look(None)
    server.kill()
    server.start()
    assert await look(before.id) == before
    assert [turn.status for turn in before.turns] == [JobStatus.SUCCEEDED, JobStatus.QUEUED]
