"""What the tests of sessions do over and over."""

import itertools
from typing import Any

from shared.contracts import GenerationRequest, Stage
from shared.contracts.sessions import SessionSummary, TurnRecord
from shared.jobs import DEFAULT_TENANT, JobQueue, Submitted
from shared.sessions import SessionStore
from shared.settings import SessionSettings, Settings
from tests.shared.jobs.steps import body_hash, new_id

_numbers = itertools.count(1)


def store_of(queue: JobQueue, **bounds: Any) -> SessionStore:
    """Return the sessions beside a queue, with bounds of the test's own."""
    return SessionStore(queue, Settings(sessions=SessionSettings(**bounds)))


async def new_session(
    store: SessionStore, *, tenant: str = DEFAULT_TENANT, name: str = "", key: str | None = None
) -> SessionSummary:
    """Make a session."""
    opened = await store.create(
        session_id=f"ses_{next(_numbers)}", tenant=tenant, name=name, body_hash=f"hash-of-{name}", idempotency_key=key
    )
    return opened.session


async def add_turn(
    queue: JobQueue,
    store: SessionStore,
    session_id: str,
    *,
    job_id: str | None = None,
    tenant: str = DEFAULT_TENANT,
    parent: int | None = None,
    key: str | None = None,
    instruction: str = "a house",
) -> Submitted:
    """Submit a turn to the prompt stage."""
    request = GenerationRequest(instruction=instruction, seed=7)
    record = TurnRecord(parent=parent, task_chosen_by="session", request=request)
    return await queue.submit(
        request,
        job_id=job_id or new_id(),
        tenant=tenant,
        stage=Stage.PROMPT,
        batch_key="sd15",
        body_hash=body_hash(request),
        idempotency_key=key,
        placement=store.placement(session_id, record),
    )
