"""`/v1/jobs`: a tenant's jobs; `/v1/jobs/{id}`: the record, its events, cancel and approve."""

import re
from contextlib import aclosing

from fastapi import APIRouter, Request
from pydantic import TypeAdapter
from starlette.responses import Response

from gateway import documentation, negotiation, sse
from gateway.approval import Approval
from gateway.backend import Backend, answering_backend_of
from gateway.job_response import job_response, jobs_response
from gateway.json_body import read_model
from gateway.listing import Listing, listing_of
from shared.contracts import Event, Job
from shared.errors import NotFound

_JOB_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_EVENTS = TypeAdapter(list[Event])

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])


@router.get("", **documentation.LIST_JOBS)
async def list_jobs(request: Request) -> Response:
    """List the caller's jobs, the latest submission first."""
    wanted = listing_of(request.query_params, Listing)
    backend = answering_backend_of(request)
    page = await backend.queue.list_jobs(
        tenant=backend.caller.tenant,
        status=wanted.status,
        task=wanted.task,
        limit=wanted.limit,
        after=wanted.after,
    )
    return jobs_response(page)


@router.get("/{job_id}", **documentation.GET_JOB)
async def get_job(request: Request, job_id: str) -> Response:
    """Return the job record."""
    return job_response(await _job(answering_backend_of(request), job_id), 200)


@router.get("/{job_id}/events", **documentation.GET_EVENTS)
async def get_events(request: Request, job_id: str) -> Response:
    """Follow the job's events as they happen, or list those so far."""
    backend = answering_backend_of(request)
    after = negotiation.event_id(request.headers.get("last-event-id"), request.query_params.get("after"))
    await _job(backend, job_id)
    accept = negotiation.best_media_type(request.headers.get("accept"), (sse.MEDIA_TYPE, "application/json"))
    if accept == sse.MEDIA_TYPE:
        ping_s = backend.settings.gateway.sse_ping_s
        return sse.EventStream(sse.stream_of(backend.follower, job_id, after=after, ping_s=ping_s), backend.drain)
    events = []
    async with aclosing(backend.follower.follow(job_id, after, idle_s=0)) as stream:
        async for event in stream:
            if event is None:  # there are no more yet
                break
            events.append(event)
    return Response(_EVENTS.dump_json(events), 200, {"Cache-Control": "no-store"}, media_type="application/json")


@router.post("/{job_id}/cancel", **documentation.CANCEL_JOB)
async def cancel_job(request: Request, job_id: str) -> Response:
    """Cancel the job; one that has ended is returned as it is."""
    _check(job_id)
    backend = answering_backend_of(request)
    return job_response(await backend.queue.cancel(job_id, tenant=backend.caller.tenant), 200)


@router.post("/{job_id}/approve", **documentation.APPROVE_JOB)
async def approve_job(request: Request, job_id: str) -> Response:
    """Let a held job be rendered, with its prompt as it is or as edited here."""
    _check(job_id)
    approval = Approval()
    if await request.body():
        approval, _ = await read_model(request, Approval)
    backend = answering_backend_of(request)
    job = await backend.queue.approve(job_id, tenant=backend.caller.tenant, prompt_text=approval.prompt)
    return job_response(job, 200)


async def _job(backend: Backend, job_id: str) -> Job:
    _check(job_id)
    return await backend.queue.get(job_id, tenant=backend.caller.tenant)


def _check(job_id: str) -> None:
    if not _JOB_ID.fullmatch(job_id):
        raise NotFound("There is no job of that id.")
