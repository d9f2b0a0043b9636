"""A tenant's sessions, as the gateway sees them; each method is one round trip."""

from dataclasses import dataclass
from typing import Any

from shared.contracts import JobStatus
from shared.contracts.sessions import Session, SessionList, SessionSummary, Turn, TurnRecord, TurnState
from shared.errors import Gone, IdempotencyConflict, NotFound, TooManySessions
from shared.jobs import JobQueue, Placement
from shared.jobs.server import client_errors
from shared.sessions.scripts import SessionScripts, SessionView, TurnView, load_sources
from shared.settings import Settings

_LOST = Gone("Nothing is known of this turn's job any more.")


@dataclass(frozen=True, slots=True)
class Opened:
    """A session that was made (`created`), or that an earlier call with the same key had made."""

    session: SessionSummary
    created: bool


class SessionStore:
    """The sessions beside one queue."""

    def __init__(self, queue: JobQueue, settings: Settings) -> None:
        self._scripts = SessionScripts(queue.redis, queue.scripts, load_sources())
        self._bounds = settings.sessions
        self._retention_s = settings.session_retention_s

    async def create(
        self, *, session_id: str, tenant: str, name: str, body_hash: str, idempotency_key: str | None
    ) -> Opened:
        """Make a session. The same `session_id` again changes nothing.

        Raises:
            TooManySessions: the tenant has as many as it may have.
            IdempotencyConflict: the key came before with another body, or made something else.
            Gone: the key came before, and its session is no longer kept.
            QueueUnavailable: the server cannot take it now.
        """
        async with client_errors():
            outcome, view = await self._scripts.create(
                session_id=session_id,
                tenant=tenant,
                name=name,
                body_hash=body_hash,
                idempotency_key=idempotency_key or "",
                max_sessions=self._bounds.max_sessions,
                retention_s=self._retention_s,
            )
        if outcome == "conflict":
            raise IdempotencyConflict("This key was used before, with another request.")
        if outcome == "gone":
            raise Gone(
                "This key was used before, and the session that it made is no longer kept.",
                next_step="Use a new `Idempotency-Key` to make another session.",
            )
        if view is None:
            raise TooManySessions(f"You have {self._bounds.max_sessions} sessions; no more are kept.")
        return Opened(_summary(view), created=outcome == "created")

    async def get(self, session_id: str, *, tenant: str) -> Session:
        """Return a session with all its turns.

        Raises:
            NotFound: the tenant has no such session.
            QueueUnavailable: the server does not answer.
        """
        async with client_errors():
            reply = await self._scripts.read(session_id=session_id, tenant=tenant)
        if reply is None:
            raise _not_found()
        view, turns = reply
        return Session(**_facts(view), turns=[_turn(turn) for turn in turns])

    async def list_sessions(self, *, tenant: str, limit: int, after: str | None) -> SessionList:
        """Return at most `limit` of the tenant's sessions, the latest made first.

        Raises:
            QueueUnavailable: the server does not answer.
        """
        async with client_errors():
            page, last = await self._scripts.list_sessions(tenant=tenant, after=after or "", limit=limit)
        return SessionList(data=[_summary(view) for view in page], next=last or None)

    async def delete(self, session_id: str, *, tenant: str) -> None:
        """Forget a session; the jobs of its turns go on, and its pictures go when their time is over.

        Raises:
            NotFound: the tenant has no such session.
            QueueUnavailable: the server does not answer.
        """
        async with client_errors():
            if not await self._scripts.delete(session_id=session_id, tenant=tenant):
                raise _not_found()

    def placement(self, session_id: str, record: TurnRecord) -> Placement:
        """Return what makes a job a turn of a session."""
        return Placement(
            session_id,
            record.model_dump_json(exclude_defaults=True),
            self._bounds.max_turns,
            self._bounds.max_bytes,
            self._retention_s,
        )


def _facts(view: SessionView) -> dict[str, Any]:
    return {
        "id": view.id,
        "name": view.record["name"],
        "created_at": int(view.record["created"]) / 1000,
        "updated_at": int(view.record["used"]) / 1000,
        "expires_at": int(view.record["ends"]) / 1000,
        "turn_count": int(view.record["count"]),
    }


def _summary(view: SessionView) -> SessionSummary:
    return SessionSummary.model_validate(_facts(view))


def _turn(view: TurnView) -> Turn:
    record = TurnRecord.model_validate_json(view.record)
    state = TurnState(status=JobStatus.FAILED, error=_LOST.to_problem())
    if view.state is not None:
        state = TurnState.model_validate_json(view.state)
    return Turn(
        id=view.number,
        job_id=view.job_id,
        created_at=view.created_ms / 1000,
        **{name: getattr(part, name) for part in (record, state) for name in type(part).model_fields},
    )


def _not_found() -> NotFound:
    return NotFound("There is no session of that id.")
