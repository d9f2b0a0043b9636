"""A request becomes a job: completed from what is offered, its pictures kept, accepted by the queue.

All calls that make jobs go through here, whatever shapes they speak.
"""

import logging
import secrets
from collections.abc import Awaitable
from dataclasses import replace
from typing import TypeVar

from gateway.backend import Backend
from gateway.cost import charge_of
from gateway.pictures import ID_PREFIX
from gateway.resolve import Resolved, resolve
from gateway.webhooks.terms import check_webhook
from shared.contracts import GenerationPrompt, GenerationRequest
from shared.errors import LimitExceeded, LLMGAError, ModelNotServed, NoWorker, QueueUnavailable
from shared.jobs import Placement, Submitted
from shared.logs import bind

SEEDS = 2**32  # short enough to be read out, and every library takes it

Understood = TypeVar("Understood")

_log = logging.getLogger("llmga.gateway")


def new_job_id() -> str:
    """Return the id of a job that is to be."""
    return f"job_{secrets.token_hex(16)}"


async def understand(
    wanted: GenerationRequest, backend: Backend, *, prompt: GenerationPrompt | None = None
) -> Resolved:
    """Return the request, complete; a picture in it is kept, and named by its id from here on.

    With a `prompt` that was written before only the rendering is left to do.

    Raises:
        NoWorker: a stage that it needs has no live worker.
        ModelNotServed: no worker serves the model that it names.
        InvalidRequest: the model does not do what is asked of it, or a picture's id names none, or the pictures do not
            fit each other, or webhooks may not go where it says.
        InvalidImage: the picture is none, or exceeds a limit.
        StoreUnavailable: the picture could not be stored.
        RateLimited: a picture that comes with the request counts as an upload, and the caller may not upload now.
    """
    check_webhook(wanted.webhook, backend.settings.webhooks)
    resolved = await _resolve(wanted, backend, prompt)
    pictures = {place: given for place, given in (("image", wanted.image), ("mask", wanted.mask)) if given is not None}
    for place, given in pictures.items():
        if not given.startswith(ID_PREFIX):
            await count_request(backend)
        image_id = await backend.pictures.id_of(given, tenant=backend.caller.tenant, field=place)
        resolved = replace(resolved, request=resolved.request.model_copy(update={place: image_id}))
    await backend.pictures.check(resolved.request, tenant=backend.caller.tenant)
    if backend.caller.lane is not None:
        resolved = replace(resolved, request=resolved.request.model_copy(update={"lane": backend.caller.lane}))
    return resolved


async def understand_or_recall(
    wanted: GenerationRequest, backend: Backend, *, body_hash: str, idempotency_key: str | None
) -> Resolved | Submitted:
    """Return the request, complete (`understand`), or the job that its key made before, if that is all there is."""
    return await or_recall(understand(wanted, backend), backend, body_hash=body_hash, idempotency_key=idempotency_key)


async def or_recall(
    understanding: Awaitable[Understood], backend: Backend, *, body_hash: str, idempotency_key: str | None
) -> Understood | Submitted:
    """Return what is understood, or the job that the request's key made before, if that is all there is.

    A job that was accepted is there whatever has become of the workers, the pictures and the limits since.
    """
    try:
        return await understanding
    except LLMGAError:
        if idempotency_key is None:
            raise
        known = await backend.queue.recall(idempotency_key, tenant=backend.caller.tenant, body_hash=body_hash)
        if known is None:
            raise
        return known


async def count_request(backend: Backend) -> None:
    """Count a request that makes no job, such as an upload, against the caller's limit before anything is done for it.

    Raises:
        RateLimited: the limit is reached.
        QueueUnavailable: the queue's server, which counts, does not answer.
    """
    caller = backend.caller
    if caller.limits.requests_per_minute == 0:
        return
    backend.fleet.check()
    try:
        caller.standing = await backend.queue.spend(tenant=caller.tenant, limits=caller.limits)
    except LimitExceeded as error:
        caller.standing = error.standing
        raise


async def submit(
    backend: Backend,
    resolved: Resolved,
    *,
    job_id: str,
    body_hash: str,
    idempotency_key: str | None = None,
    placement: Placement | None = None,
) -> Submitted:
    """Put the request into the queue as the job of this id, at the caller's charge (`JobQueue.submit`)."""
    caller = backend.caller
    with bind(job_id=job_id):
        try:
            submitted = await backend.queue.submit(
                resolved.request,
                job_id=job_id,
                tenant=caller.tenant,
                stage=resolved.stage,
                prompt=resolved.prompt,
                batch_key=resolved.batch_key,
                body_hash=body_hash,
                idempotency_key=idempotency_key,
                limits=caller.limits,
                charge=charge_of(resolved.request, is_written=resolved.prompt is not None),
                placement=placement,
            )
        except LimitExceeded as error:
            caller.standing = error.standing
            raise
        if submitted.created:
            caller.standing = submitted.standing
            extra = {"tenant": caller.tenant, "key_id": caller.key_id, "instruction": resolved.request.instruction}
            _log.info("job accepted", extra=extra)
    return submitted


async def cancel(backend: Backend, job_id: str) -> None:
    """Cancel the job of a client that has left."""
    with bind(job_id=job_id):
        try:
            await backend.queue.cancel(job_id, tenant=backend.caller.tenant)
            _log.info("the client left; job canceled")
        except QueueUnavailable:
            _log.warning("the client left, but its job could not be canceled")


async def _resolve(wanted: GenerationRequest, backend: Backend, prompt: GenerationPrompt | None) -> Resolved:
    seed = secrets.randbelow(SEEDS)
    try:
        return resolve(wanted, backend.fleet.view.offers, seed=seed, prompt=prompt)
    except (NoWorker, ModelNotServed):  # a worker may have come since the last look
        return resolve(wanted, await backend.fleet.look_again(), seed=seed, prompt=prompt)
