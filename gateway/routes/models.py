"""`GET /v1/models`: what the live workers serve; with `?published`, the published checkpoints beside it."""

from fastapi import APIRouter, Request
from starlette.responses import Response

from gateway import documentation
from gateway.answers import ModelList
from gateway.backend import answering_backend_of

router = APIRouter(tags=["models"])


@router.get("/v1/models", **documentation.LIST_MODELS)
async def list_models(request: Request) -> Response:
    """List the models that the live workers serve, and with `?published` those that could be served."""
    offers = answering_backend_of(request).fleet.view.offers
    models = ModelList.of(offers, published="published" in request.query_params)
    body = models.model_dump_json(exclude_none=True)
    return Response(body, 200, {"Cache-Control": "no-store"}, media_type="application/json")
