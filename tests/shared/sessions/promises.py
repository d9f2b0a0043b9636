"""What sessions promise, each as a function that asserts it; `tests.shared.jobs.test_safeguards` runs them."""

from collections.abc import Awaitable, Callable
from typing import Any, cast

import pytest

from shared.contracts import JobStatus, Stage
from shared.errors import NotFound, SessionFull, TooManySessions
from shared.jobs import JobQueue
from tests.shared.jobs.steps import claim, image, prompt
from tests.shared.sessions.turns import add_turn, new_session, store_of

Promise = Callable[[JobQueue], Awaitable[None]]


async def session_is_its_owner_s(queue: JobQueue) -> None:
    """Nobody else reads a session, adds to it or deletes it."""
    store = store_of(queue)
    session = await new_session(store, tenant="a")
    with pytest.raises(NotFound):
        await store.get(session.id, tenant="b")
    with pytest.raises(NotFound):
        await add_turn(queue, store, session.id, tenant="b")
    with pytest.raises(NotFound):
        await store.delete(session.id, tenant="b")
    assert (await store.get(session.id, tenant="a")).turns == []


async def unused_session_expires(queue: JobQueue) -> None:
    """Nothing of a session stays for ever."""
    store = store_of(queue, retention_s=60)
    session = await new_session(store)
    await add_turn(queue, store, session.id)
    await queue.cancel((await store.get(session.id, tenant="default")).turns[0].job_id)
    for name in ("session", "turns"):
        assert 0 < await queue.redis.ttl(f"{queue.scripts.base}{name}:{session.id}") <= 60


async def expired_session_leaves_the_list(queue: JobQueue) -> None:
    """A session that has expired makes room for another one."""
    store = store_of(queue)
    session = await new_session(store, tenant="a")
    base = queue.scripts.base
    await queue.redis.delete(f"{base}session:{session.id}")  # as its retention would
    await queue.redis.zadd(f"{base}ends:a", {session.id: 1}, xx=True)
    await new_session(store, tenant="a")
    for name in ("sessions", "ends"):
        assert session.id not in await cast(Any, queue.redis.zrange(f"{base}{name}:a", 0, -1))


async def session_has_no_more_turns_than_it_may(queue: JobQueue) -> None:
    """A full session takes no turn, and its job is not accepted either."""
    store = store_of(queue, max_turns=2)
    session = await new_session(store)
    for _ in range(2):
        await add_turn(queue, store, session.id)
    with pytest.raises(SessionFull):
        await add_turn(queue, store, session.id)
    assert sum((await queue.depth()).values()) == 2


async def session_has_no_more_bytes_than_it_may(queue: JobQueue) -> None:
    """Long words fill a session before its turns are used up."""
    store = store_of(queue, max_bytes=65_536)
    session = await new_session(store)
    for _ in range(8):
        await add_turn(queue, store, session.id, instruction="x" * 8_000)
    with pytest.raises(SessionFull):
        await add_turn(queue, store, session.id, instruction="x" * 8_000)


async def turn_outlives_its_job(queue: JobQueue) -> None:
    """What a job came to stays with its turn when the job's record has expired."""
    store = store_of(queue)
    session = await new_session(store)
    submitted = await add_turn(queue, store, session.id)
    await (await claim(queue, Stage.PROMPT)).advance(prompt("a white house"))
    await (await claim(queue, Stage.RENDER)).finish([image()])
    await queue.redis.delete(queue.job_key(submitted.job.id), queue.events_key(submitted.job.id))
    (turn,) = (await store.get(session.id, tenant="default")).turns
    assert turn.status is JobStatus.SUCCEEDED
    assert turn.prompt is not None
    assert (turn.prompt.text, turn.images) == ("a white house", [image()])


async def tenant_has_no_more_sessions_than_it_may(queue: JobQueue) -> None:
    """A tenant's bound does not hold others back."""
    store = store_of(queue, max_sessions=2)
    for _ in range(2):
        await new_session(store, tenant="a")
    with pytest.raises(TooManySessions):
        await new_session(store, tenant="a")
    await new_session(store, tenant="b")


SESSION_PROMISES: dict[str, tuple[Promise, dict[str, int]]] = {
    "owner of a session": (session_is_its_owner_s, {}),
    "retention of sessions": (unused_session_expires, {}),
    "list of sessions": (expired_session_leaves_the_list, {}),
    "turns of a session": (session_has_no_more_turns_than_it_may, {}),
    "bytes of a session": (session_has_no_more_bytes_than_it_may, {}),
    "end of a turn": (turn_outlives_its_job, {}),
    "sessions of a tenant": (tenant_has_no_more_sessions_than_it_may, {}),
}
