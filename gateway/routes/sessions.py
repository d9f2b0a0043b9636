"""`/v1/sessions`: conversations; `/v1/sessions/{id}/turns`: what is said next becomes a job."""

import hashlib
import re
import secrets
from dataclasses import dataclass

from fastapi import APIRouter, Request
from starlette.responses import Response

from gateway import negotiation
from gateway.backend import Backend, answering_backend_of
from gateway.hearing import Wishes, answer_with_job
from gateway.json_body import read_model
from gateway.listing import Page, listing_of
from gateway.resolve import Resolved
from gateway.sessions import documentation
from gateway.sessions.composition import Composed, compose
from gateway.sessions.tree import pictures_of
from gateway.submission import count_request, or_recall, understand
from shared.contracts.sessions import Session, SessionList, SessionRequest, SessionSummary, TurnRequest
from shared.errors import NotFound
from shared.jobs import Submitted

_SESSION_ID = re.compile(r"ses_[0-9a-f]{32}")

router = APIRouter(prefix="/v1/sessions", tags=["sessions"])


@router.post("", **documentation.CREATE_SESSION)
async def create_session(request: Request) -> Response:
    """Begin a conversation."""
    backend = answering_backend_of(request)
    key = negotiation.idempotency_key(request.headers.get("idempotency-key"))
    wanted, body_hash = SessionRequest(), ""
    if await request.body():
        wanted, body_hash = await read_model(request, SessionRequest)
    await count_request(backend)
    opened = await backend.sessions.create(
        session_id=f"ses_{secrets.token_hex(16)}",
        tenant=backend.caller.tenant,
        name=wanted.name,
        body_hash=_hash_of("/v1/sessions", body_hash),
        idempotency_key=key,
    )
    headers = {"Location": f"/v1/sessions/{opened.session.id}"}
    if not opened.created:
        headers["Idempotency-Replayed"] = "true"
    return _answer(opened.session, 201, headers)


@router.get("", **documentation.LIST_SESSIONS)
async def list_sessions(request: Request) -> Response:
    """List the caller's sessions, the latest made first."""
    wanted = listing_of(request.query_params, Page)
    backend = answering_backend_of(request)
    page = await backend.sessions.list_sessions(tenant=backend.caller.tenant, limit=wanted.limit, after=wanted.after)
    return _answer(page)


@router.get("/{session_id}", **documentation.GET_SESSION)
async def get_session(request: Request, session_id: str) -> Response:
    """Return the session with its tree of turns."""
    return _answer(await _session(answering_backend_of(request), session_id))


@router.delete("/{session_id}", **documentation.DELETE_SESSION)
async def delete_session(request: Request, session_id: str) -> Response:
    """Forget the session; jobs of its turns that are under way go on."""
    backend = answering_backend_of(request)
    _check(session_id)
    await backend.sessions.delete(session_id, tenant=backend.caller.tenant)
    return Response(status_code=204)


@router.post("/{session_id}/turns", **documentation.CREATE_TURN)
async def create_turn(request: Request, session_id: str) -> Response:
    """Say what comes next; it becomes a job, and a turn of the session."""
    backend = answering_backend_of(request)
    _check(session_id)
    wishes = Wishes.of(request, backend.settings.gateway.max_wait_s)
    wanted, digest = await read_model(request, TurnRequest)
    body_hash = _hash_of(f"/v1/sessions/{session_id}/turns", digest)
    asked = await or_recall(
        _understand(wanted, backend, session_id), backend, body_hash=body_hash, idempotency_key=wishes.idempotency_key
    )
    del wanted  # a picture in it is let go of here
    if isinstance(asked, Submitted):
        return await answer_with_job(request, backend, asked, wishes, body_hash=body_hash)
    placement = backend.sessions.placement(session_id, asked.composed.record(asked.resolved.request))
    return await answer_with_job(request, backend, asked.resolved, wishes, body_hash=body_hash, placement=placement)


@dataclass(frozen=True, slots=True)
class _Understood:
    composed: Composed
    resolved: Resolved


async def _understand(wanted: TurnRequest, backend: Backend, session_id: str) -> _Understood:
    session = await _session(backend, session_id)
    composed = compose(wanted, session, backend.fleet.view.offers)
    await backend.pictures.keep_on(pictures_of(session), tenant=backend.caller.tenant)
    return _Understood(composed, await understand(composed.request, backend, prompt=composed.prompt))


async def _session(backend: Backend, session_id: str) -> Session:
    _check(session_id)
    return await backend.sessions.get(session_id, tenant=backend.caller.tenant)


def _check(session_id: str) -> None:
    if not _SESSION_ID.fullmatch(session_id):
        raise NotFound("There is no session of that id.")


def _hash_of(path: str, digest: str) -> str:
    """Return the hash of a body for this path: an idempotency key is not good for another call."""
    return hashlib.sha256(f"{path}\n{digest}".encode()).hexdigest()


def _answer(
    model: Session | SessionSummary | SessionList, status: int = 200, headers: dict[str, str] | None = None
) -> Response:
    body = model.model_dump_json(exclude_none=True)
    return Response(body, status, {"Cache-Control": "no-store", **(headers or {})}, media_type="application/json")
