"""`POST /v1/generations`: a request becomes a job; the client chooses how it hears of it.

- by default: 202, the job record, and `Location`;
- `Prefer: wait=N`: the finished job, or 202 when the time is over or the job is held for approval;
- `Accept: text/event-stream`: the job's events.

In the last two the client is there for the answer, so its leaving cancels the job. Not so with an `Idempotency-
Key`: the key says that the client will ask again, and it must find its job then.
"""

from contextlib import suppress

from fastapi import APIRouter, Request
from starlette.responses import Response

from gateway import documentation, negotiation, sse
from gateway.backend import Backend, answering_backend_of
from gateway.connection import Ending, while_connected
from gateway.job_response import job_response, links
from gateway.json_body import read_model
from gateway.submission import cancel, new_job_id, submit, understand_or_recall
from shared.contracts import TERMINAL, GenerationRequest, JobStatus
from shared.errors import QueueUnavailable
from shared.jobs import Submitted
from shared.jobs.follower import START, Watch

router = APIRouter(tags=["generations"])


@router.post("/v1/generations", **documentation.CREATE_GENERATION)
async def create_generation(request: Request) -> Response:
    """Submit a request."""
    backend = answering_backend_of(request)
    key = negotiation.idempotency_key(request.headers.get("idempotency-key"))
    accept = negotiation.best_media_type(request.headers.get("accept"), ("application/json", sse.MEDIA_TYPE))
    wait_s = negotiation.preferred_wait_s(request.headers.getlist("prefer"), backend.settings.gateway.max_wait_s)
    wanted, body_hash = await read_model(request, GenerationRequest)
    resolved = await understand_or_recall(wanted, backend, body_hash=body_hash, idempotency_key=key)
    del wanted  # a picture in it is let go of here
    job_id = new_job_id()

    async def accepted() -> tuple[Submitted, dict[str, str]]:
        submitted = resolved
        if not isinstance(submitted, Submitted):
            submitted = await submit(backend, submitted, job_id=job_id, body_hash=body_hash, idempotency_key=key)
        headers = {"Location": links(submitted.job.id)["self"]}
        if not submitted.created:
            headers["Idempotency-Replayed"] = "true"
        return submitted, headers

    is_awaited = key is None  # see the module's docstring
    if accept == sse.MEDIA_TYPE:
        return _stream(backend, *await accepted(), is_awaited)
    if wait_s is None:
        submitted, headers = await accepted()
        return job_response(submitted.job, 202, headers)
    async with backend.follower.watch(job_id) as watch:  # from before it exists, so that nothing is missed
        submitted, headers = await accepted()
        headers["Preference-Applied"] = f"wait={wait_s:g}"
        if submitted.created:
            return await _wait(request, backend, submitted, headers, watch, wait_s, is_awaited)
    async with backend.follower.watch(submitted.job.id) as watch:
        return await _wait(request, backend, submitted, headers, watch, wait_s, is_awaited)


def _stream(backend: Backend, submitted: Submitted, headers: dict[str, str], is_awaited: bool) -> Response:
    job_id = submitted.job.id

    async def leave() -> None:
        await cancel(backend, job_id)

    return sse.EventStream(
        sse.stream_of(backend.follower, job_id, after=START, ping_s=backend.settings.gateway.sse_ping_s),
        backend.drain,
        headers=headers,
        on_disconnect=leave if is_awaited else None,
    )


async def _wait(
    request: Request,
    backend: Backend,
    submitted: Submitted,
    headers: dict[str, str],
    watch: Watch,
    wait_s: float,
    is_awaited: bool,
) -> Response:
    job = submitted.job

    async def ended() -> None:
        await watch.rested(timeout_s=wait_s, is_new=submitted.created)

    if wait_s > 0 and job.status not in TERMINAL and job.status is not JobStatus.AWAITING_APPROVAL:
        ending = await while_connected(ended(), request.receive, backend.drain)
        if ending is Ending.DISCONNECTED:
            if is_awaited:
                await cancel(backend, job.id)
            return Response()  # nobody reads it
        with suppress(QueueUnavailable):  # it is accepted all the same: better its id than an error
            job = await backend.queue.get(job.id, tenant=backend.caller.tenant)
    return job_response(job, 200 if job.status in TERMINAL else 202, headers)
