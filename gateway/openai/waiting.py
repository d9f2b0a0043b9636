"""Calls whose client stays for the answer: the job is submitted, awaited, and canceled when nobody needs it."""

import time
from collections.abc import AsyncGenerator

from starlette.requests import Request

from gateway.backend import Backend
from gateway.connection import Ending, while_connected
from gateway.openai.results import check_succeeded
from gateway.resolve import Resolved
from gateway.submission import cancel, new_job_id, submit
from shared.contracts import TERMINAL, Job
from shared.errors import Draining, TimedOut
from shared.jobs import Submitted
from shared.jobs.follower import Watch

_RETRY_AFTER_S = 2  # another gateway is there at once, this one in a few seconds


async def finished_job(
    request: Request, backend: Backend, asked: Resolved | Submitted, *, body_hash: str, idempotency_key: str | None
) -> Job | None:
    """Submit a request and return its job when it has succeeded; None when the client left before.

    A job that is given up is canceled, unless its idempotency key says that the client will ask for it again.

    Raises:
        JobFailed, Gone: it has ended in another way.
        TimedOut: it had not ended when the longest wait was over.
        Draining: this process is about to end.
    """
    if not isinstance(asked, Submitted):
        job_id = new_job_id()
        async with backend.follower.watch(job_id) as watch:  # from before it exists, so that nothing is missed
            asked = await submit(backend, asked, job_id=job_id, body_hash=body_hash, idempotency_key=idempotency_key)
            if asked.created:
                return await _ended(request, backend, asked, watch, is_awaited=idempotency_key is None)
    async with backend.follower.watch(asked.job.id) as watch:
        return await _ended(request, backend, asked, watch, is_awaited=idempotency_key is None)


def restarting() -> Draining:
    """Return what a client is told whose answer this process will not live to give."""
    return Draining("This server restarts, and the picture was not finished.", retry_after_s=_RETRY_AFTER_S)


async def _ended(
    request: Request, backend: Backend, submitted: Submitted, watch: Watch, *, is_awaited: bool
) -> Job | None:
    job = submitted.job
    has_ended = job.status in TERMINAL

    async def wait() -> None:
        nonlocal has_ended
        limit_s = backend.settings.gateway.max_wait_s
        has_ended = await watch.rested(timeout_s=limit_s, is_new=submitted.created)

    ending = Ending.DONE
    if not has_ended:
        ending = await while_connected(wait(), request.receive, backend.drain)
    if has_ended:
        return await _succeeded(backend, job.id)
    if is_awaited:
        await cancel(backend, job.id)
    if ending is Ending.DISCONNECTED:
        return None
    if ending is Ending.DRAINED:
        raise restarting()
    raise _timed_out()


async def rendered(backend: Backend, resolved: Resolved, *, body_hash: str) -> AsyncGenerator[Job | None, None]:
    """Submit a request; yield None after each silence, and its job when it has succeeded.

    Closing the generator before cancels the job.

    Raises:
        JobFailed, Gone: it has ended in another way.
        TimedOut: it had not ended when the longest wait was over.
    """
    settings = backend.settings.gateway
    end_s = time.monotonic() + settings.max_wait_s
    job_id = new_job_id()
    async with backend.follower.watch(job_id) as watch:
        await submit(backend, resolved, job_id=job_id, body_hash=body_hash)
        has_ended = False
        try:
            while not has_ended and (left_s := end_s - time.monotonic()) > 0:
                has_ended = await watch.rested(timeout_s=min(settings.sse_ping_s, left_s), is_new=True)
                if not has_ended:
                    yield None
        finally:
            if not has_ended:
                await cancel(backend, job_id)
    if not has_ended:
        raise _timed_out()
    yield await _succeeded(backend, job_id)


async def _succeeded(backend: Backend, job_id: str) -> Job:
    job = await backend.queue.get(job_id, tenant=backend.caller.tenant)
    check_succeeded(job)
    return job


def _timed_out() -> TimedOut:
    return TimedOut("The picture was not finished in the time that this call may take.")
