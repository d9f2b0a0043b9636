"""`GET /v1/models`: what the live workers serve, in OpenAI's shape; with `?published`, what else could be."""

from fastapi import APIRouter, Request
from starlette.responses import Response

from gateway import documentation
from gateway.answers import ModelList
from gateway.backend import answering_backend_of
from shared.errors import NotFound

router = APIRouter(tags=["models"])


@router.get("/v1/models", **documentation.LIST_MODELS)
async def list_models(request: Request) -> Response:
    """List the models that the live workers serve, and with `?published` those that could be served."""
    offers = answering_backend_of(request).fleet.view.offers
    models = ModelList.of(offers, published="published" in request.query_params)
    return _answer(models.model_dump_json(exclude_none=True))


@router.get("/v1/models/{model}", **documentation.GET_MODEL)
async def get_model(request: Request, model: str) -> Response:
    """Return what is known of one model."""
    for card in ModelList.of(answering_backend_of(request).fleet.view.offers).data:
        if card.id == model:
            return _answer(card.model_dump_json(exclude_none=True))
    raise NotFound("No worker serves a model of that name.", next_step="`/v1/models` lists those that are served.")


def _answer(body: str) -> Response:
    return Response(body, 200, {"Cache-Control": "no-store"}, media_type="application/json")
