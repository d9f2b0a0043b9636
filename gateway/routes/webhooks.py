"""`GET /v1/webhooks`: where webhooks may go, and the secret that verifies those of the caller."""

from fastapi import APIRouter, Request
from starlette.responses import Response

from gateway import documentation
from gateway.backend import backend_of
from gateway.webhooks.terms import terms_for

router = APIRouter(tags=["webhooks"])


@router.get("/v1/webhooks", **documentation.GET_WEBHOOKS)
async def get_webhooks(request: Request) -> Response:
    """Return what the caller must know of webhooks."""
    backend = backend_of(request)
    terms = terms_for(backend.caller.tenant, backend.settings.webhooks)
    body = terms.model_dump_json(exclude_none=True)
    return Response(body, 200, {"Cache-Control": "no-store"}, media_type="application/json")
