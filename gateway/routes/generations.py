"""`POST /v1/generations`: a request becomes a job; the client chooses how it hears of it (`gateway.hearing`)."""

from fastapi import APIRouter, Request
from starlette.responses import Response

from gateway import documentation
from gateway.backend import answering_backend_of
from gateway.hearing import Wishes, answer_with_job
from gateway.json_body import read_model
from gateway.submission import understand_or_recall
from shared.contracts import GenerationRequest

router = APIRouter(tags=["generations"])


@router.post("/v1/generations", **documentation.CREATE_GENERATION)
async def create_generation(request: Request) -> Response:
    """Submit a request."""
    backend = answering_backend_of(request)
    wishes = Wishes.of(request, backend.settings.gateway.max_wait_s)
    wanted, body_hash = await read_model(request, GenerationRequest)
    asked = await understand_or_recall(wanted, backend, body_hash=body_hash, idempotency_key=wishes.idempotency_key)
    del wanted  # a picture in it is let go of here
    return await answer_with_job(request, backend, asked, wishes, body_hash=body_hash)
