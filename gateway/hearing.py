"""How a client hears of the job that its request becomes:

- by default: 202, the job record, and `Location`;
- `Prefer: wait=N`: the finished job, or 202 when the time is over or the job is held for approval;
- `Accept: text/event-stream`: the job's events.

In the last two the client is there for the answer, so its leaving cancels the job. Not so with an `Idempotency-
Key`: the key says that the client will ask again, and it must find its job then.
"""

from contextlib import suppress
from dataclasses import dataclass
from typing import Self

from starlette.requests import Request
from starlette.responses import Response

from gateway import negotiation, sse
from gateway.backend import Backend
from gateway.connection import Ending, while_connected
from gateway.job_response import job_response, links
from gateway.resolve import Resolved
from gateway.submission import cancel, new_job_id, submit
from shared.contracts import TERMINAL, JobStatus
from shared.errors import QueueUnavailable
from shared.jobs import Placement, Submitted
from shared.jobs.follower import START, Watch


@dataclass(frozen=True, slots=True)
class Wishes:
    """What a client asks for in its headers."""

    idempotency_key: str | None
    is_stream: bool
    wait_s: float | None

    @classmethod
    def of(cls, request: Request, max_wait_s: float) -> Self:
        """Return the wishes of a request.

        Raises:
            InvalidRequest: its idempotency key is not usable.
        """
        headers = request.headers
        accept = negotiation.best_media_type(headers.get("accept"), ("application/json", sse.MEDIA_TYPE))
        return cls(
            idempotency_key=negotiation.idempotency_key(headers.get("idempotency-key")),
            is_stream=accept == sse.MEDIA_TYPE,
            wait_s=negotiation.preferred_wait_s(headers.getlist("prefer"), max_wait_s),
        )

    @property
    def is_awaited(self) -> bool:
        """Whether the job is wanted only for as long as the client waits for its answer."""
        return self.idempotency_key is None


async def answer_with_job(
    request: Request,
    backend: Backend,
    asked: Resolved | Submitted,
    wishes: Wishes,
    *,
    body_hash: str,
    placement: Placement | None = None,
) -> Response:
    """Submit what is asked for, unless it was before, and answer as the client wishes.

    Raises:
        LLMGAError: the queue does not take the job (`JobQueue.submit`).
    """
    job_id = new_job_id()

    async def accepted() -> tuple[Submitted, dict[str, str]]:
        submitted = asked
        if not isinstance(submitted, Submitted):
            submitted = await submit(
                backend,
                submitted,
                job_id=job_id,
                body_hash=body_hash,
                idempotency_key=wishes.idempotency_key,
                placement=placement,
            )
        headers = {"Location": links(submitted.job.id)["self"]}
        if not submitted.created:
            headers["Idempotency-Replayed"] = "true"
        return submitted, headers

    if wishes.is_stream:
        return _stream(backend, *await accepted(), wishes.is_awaited)
    if wishes.wait_s is None:
        submitted, headers = await accepted()
        return job_response(submitted.job, 202, headers)
    async with backend.follower.watch(job_id) as watch:  # from before it exists, so that nothing is missed
        submitted, headers = await accepted()
        headers["Preference-Applied"] = f"wait={wishes.wait_s:g}"
        if submitted.created:
            return await _wait(request, backend, submitted, headers, watch, wishes.wait_s, wishes.is_awaited)
    async with backend.follower.watch(submitted.job.id) as watch:
        return await _wait(request, backend, submitted, headers, watch, wishes.wait_s, wishes.is_awaited)


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
