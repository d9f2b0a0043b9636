"""`POST /v1/generations`: a request becomes a job; the client chooses how it hears of it.

- by default: 202, the job record, and `Location`;
- `Prefer: wait=N`: the finished job, or 202 when the time is over or the job is held for approval;
- `Accept: text/event-stream`: the job's events.

In the last two the client is there for the answer, so its leaving cancels the job. Not so with an `Idempotency-
Key`: the key says that the client will ask again, and it must find its job then.
"""

import logging
import secrets
from contextlib import suppress
from dataclasses import replace

from fastapi import APIRouter, Request
from starlette.responses import Response

from gateway import documentation, negotiation, sse
from gateway.backend import Backend, answering_backend_of
from gateway.connection import Ending, while_connected
from gateway.job_response import job_response, links
from gateway.json_body import read_model
from gateway.resolve import Resolved, resolve
from shared.contracts import TERMINAL, GenerationRequest, JobStatus
from shared.errors import ModelNotServed, NoWorker, QueueUnavailable
from shared.jobs import DEFAULT_TENANT, Submitted
from shared.jobs.follower import START, Watch
from shared.logs import bind

SEEDS = 2**32  # short enough to be read out, and every library takes it

_log = logging.getLogger("llmga.gateway")

router = APIRouter(tags=["generations"])


@router.post("/v1/generations", **documentation.CREATE_GENERATION)
async def create_generation(request: Request) -> Response:
    """Submit a request."""
    backend = answering_backend_of(request)
    key = negotiation.idempotency_key(request.headers.get("idempotency-key"))
    accept = negotiation.best_media_type(request.headers.get("accept"), ("application/json", sse.MEDIA_TYPE))
    wait_s = negotiation.preferred_wait_s(request.headers.getlist("prefer"), backend.settings.gateway.max_wait_s)
    resolved, body_hash = await _understand(request, backend)
    job_id = f"job_{secrets.token_hex(16)}"

    async def submit() -> tuple[Submitted, dict[str, str]]:
        with bind(job_id=job_id):
            submitted = await backend.queue.submit(
                resolved.request,
                job_id=job_id,
                stage=resolved.stage,
                prompt=resolved.prompt,
                batch_key=resolved.batch_key,
                body_hash=body_hash,
                idempotency_key=key,
            )
            if submitted.created:
                _log.info("job accepted", extra={"instruction": resolved.request.instruction})
        headers = {"Location": links(submitted.job.id)["self"]}
        if not submitted.created:
            headers["Idempotency-Replayed"] = "true"
        return submitted, headers

    is_awaited = key is None  # see the module's docstring
    if accept == sse.MEDIA_TYPE:
        return _stream(backend, *await submit(), is_awaited)
    if wait_s is None:
        submitted, headers = await submit()
        return job_response(submitted.job, 202, headers)
    async with backend.follower.watch(job_id) as watch:  # from before it exists, so that nothing is missed
        submitted, headers = await submit()
        headers["Preference-Applied"] = f"wait={wait_s:g}"
        if submitted.created:
            return await _wait(request, backend, submitted, headers, watch, wait_s, is_awaited)
    async with backend.follower.watch(submitted.job.id) as watch:
        return await _wait(request, backend, submitted, headers, watch, wait_s, is_awaited)


async def _understand(request: Request, backend: Backend) -> tuple[Resolved, str]:
    """Return the request, complete, and the hash of its body; a picture in it is kept, and let go of here."""
    wanted, body_hash = await read_model(request, GenerationRequest)
    resolved = await _resolve(wanted, backend)
    if wanted.image is not None:
        image_id = await backend.pictures.id_of(wanted.image, tenant=DEFAULT_TENANT)
        resolved = replace(resolved, request=resolved.request.model_copy(update={"image": image_id}))
    return resolved, body_hash


async def _resolve(wanted: GenerationRequest, backend: Backend) -> Resolved:
    seed = secrets.randbelow(SEEDS)
    try:
        return resolve(wanted, backend.fleet.view.offers, seed=seed)
    except (NoWorker, ModelNotServed):  # a worker may have come since the last look
        return resolve(wanted, await backend.fleet.look_again(), seed=seed)


def _stream(backend: Backend, submitted: Submitted, headers: dict[str, str], is_awaited: bool) -> Response:
    job_id = submitted.job.id

    async def cancel() -> None:
        await _cancel(backend, job_id)

    return sse.EventStream(
        sse.stream_of(backend.follower, job_id, after=START, ping_s=backend.settings.gateway.sse_ping_s),
        backend.drain,
        headers=headers,
        on_disconnect=cancel if is_awaited else None,
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
                await _cancel(backend, job.id)
            return Response()  # nobody reads it
        with suppress(QueueUnavailable):  # it is accepted all the same: better its id than an error
            job = await backend.queue.get(job.id)
    return job_response(job, 200 if job.status in TERMINAL else 202, headers)


async def _cancel(backend: Backend, job_id: str) -> None:
    with bind(job_id=job_id):
        try:
            await backend.queue.cancel(job_id)
            _log.info("the client left; job canceled")
        except QueueUnavailable:
            _log.warning("the client left, but its job could not be canceled")
