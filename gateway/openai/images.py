"""`/v1/images/generations`, `/edits` and `/variations` as OpenAI's clients call them."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

from fastapi import APIRouter, Request
from starlette.responses import Response

from gateway import negotiation, sse
from gateway.backend import Backend, answering_backend_of
from gateway.json_body import read_model
from gateway.openai import documentation
from gateway.openai.image_answers import Call
from gateway.openai.image_requests import ImageBody, Quality, VariationOptions
from gateway.openai.multipart import Form, form_model, read_form
from gateway.openai.results import Results
from gateway.openai.streaming import error_event, image_events
from gateway.openai.waiting import finished_job, restarting
from gateway.resolve import Resolved
from gateway.submission import cancel, count_request, new_job_id, submit, understand_or_recall
from shared.contracts import FieldProblem, GenerationRequest, Task, UploadedImage
from shared.errors import InvalidRequest
from shared.jobs import Submitted

router = APIRouter(tags=["openai"])


@router.post("/v1/images/generations", **documentation.CREATE_IMAGES)
async def create_images(request: Request) -> Response:
    """Make pictures from words, in OpenAI's shapes."""
    backend = answering_backend_of(request)
    body, digest = await read_model(request, ImageBody)
    wanted = body.generation_request(Task.TEXT_TO_IMAGE)
    if body.stream:
        return await _stream(request, backend, Call.GENERATION, body, wanted, digest)
    return await _whole(request, backend, wanted, digest, quality=body.quality, as_urls=body.as_urls)


@router.post("/v1/images/edits", **documentation.EDIT_IMAGE)
async def edit_image(request: Request) -> Response:
    """Repaint what the mask leaves see-through, or edit the whole picture, in OpenAI's shapes."""
    backend = answering_backend_of(request)
    form = await read_form(request)
    body = form_model(form, ImageBody, files=("image", "mask"))
    image, mask = await _kept(backend, form)
    digest = form.digest
    del form  # its pictures are let go of here, not when the answer is there
    if mask is None:
        wanted = body.generation_request(Task.EDIT, image=image.id)
    else:
        wanted = body.generation_request(Task.INPAINT, image=image.id, mask=mask.id)
    if body.stream:
        return await _stream(request, backend, Call.EDIT, body, wanted, digest)
    return await _whole(request, backend, wanted, digest, quality=body.quality, as_urls=body.as_urls)


@router.post("/v1/images/variations", **documentation.VARY_IMAGE)
async def vary_image(request: Request) -> Response:
    """Make pictures like the one that is sent, in OpenAI's shapes."""
    backend = answering_backend_of(request)
    form = await read_form(request)
    options = form_model(form, VariationOptions, files=("image",))
    picture, digest = _only(form, "image"), form.digest
    await count_request(backend)
    image = await backend.pictures.keep(picture, tenant=backend.caller.tenant)
    del form, picture
    wanted = options.generation_request(Task.SIMILAR, image=image.id)
    return await _whole(request, backend, wanted, digest, quality=None, as_urls=options.as_urls)


async def _whole(
    request: Request,
    backend: Backend,
    wanted: GenerationRequest,
    digest: str,
    *,
    quality: Quality | None,
    as_urls: bool,
) -> Response:
    key = negotiation.idempotency_key(request.headers.get("idempotency-key"))
    asked = _with_quality(
        await understand_or_recall(wanted, backend, body_hash=digest, idempotency_key=key), wanted, quality
    )
    job = await finished_job(request, backend, asked, body_hash=digest, idempotency_key=key)
    if job is None:
        return Response()  # nobody reads it
    answer = await Results.of(request, backend, quality).answer(job, as_urls=as_urls)
    return Response(answer, 200, {"Cache-Control": "no-store"}, media_type="application/json")


async def _stream(
    request: Request, backend: Backend, call: Call, body: ImageBody, wanted: GenerationRequest, digest: str
) -> Response:
    key = negotiation.idempotency_key(request.headers.get("idempotency-key"))
    asked = _with_quality(
        await understand_or_recall(wanted, backend, body_hash=digest, idempotency_key=key), wanted, body.quality
    )
    if not isinstance(asked, Submitted):
        asked = await submit(backend, asked, job_id=new_job_id(), body_hash=digest, idempotency_key=key)
    job = asked.job

    async def leave() -> None:
        await cancel(backend, job.id)

    return sse.EventStream(
        image_events(backend, job, call, Results.of(request, backend, body.quality)),
        backend.drain,
        on_disconnect=leave if key is None else None,
        farewell=error_event(restarting().to_problem()),
    )


def _with_quality(
    asked: Resolved | Submitted, wanted: GenerationRequest, quality: Quality | None
) -> Resolved | Submitted:
    """Return the request with the steps of its quality, where it names none itself."""
    if isinstance(asked, Submitted) or quality is None or wanted.num_inference_steps is not None:
        return asked
    usual = asked.request.num_inference_steps
    assert usual is not None, "filled in for whatever is rendered"
    request = asked.request.model_copy(update={"num_inference_steps": quality.steps(usual)})
    return replace(asked, request=request)


async def _kept(backend: Backend, form: Form) -> tuple[UploadedImage, UploadedImage | None]:
    """Return the picture and the mask of an edit, kept. Without a mask the picture's own transparency is it, if any.

    Raises:
        InvalidRequest: there is no picture, or nothing is see-through in the mask.
        InvalidImage: one of them is none.
    """
    picture, tenant = _only(form, "image"), backend.caller.tenant
    given = _only(form, "mask") if "mask" in form.files else None
    await count_request(backend)
    mask = None
    if given is not None:
        mask = await backend.pictures.keep_mask(given, tenant=tenant, field="mask")
    else:
        with suppress(InvalidRequest):  # nothing in it is see-through
            mask = await backend.pictures.keep_mask(picture, tenant=tenant, field="image")
    image = await backend.pictures.keep(picture, tenant=backend.caller.tenant)
    return image, mask


def _only(form: Form, field: str) -> bytes:
    files: Sequence[bytes] = form.files.get(field, ())
    if len(files) == 1:
        return files[0]
    if files:
        raise _refused("Several pictures came in one field.", field, "too_long", "must be one picture")
    if field in form.fields:
        raise _refused("A picture came as text.", field, "wrong_type", "must be a file, with a file name")
    raise _refused(f"The request was not accepted because of: {field}.", field, "missing", "is required")


def _refused(detail: str, field: str, code: str, message: str) -> InvalidRequest:
    return InvalidRequest(detail, errors=[FieldProblem(field=field, code=code, message=message)])
