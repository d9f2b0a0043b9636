"""`/livez`, `/readyz`, `/health`: for orchestrators, load balancers and people who wait for a start-up to end."""

from fastapi import APIRouter, Request
from starlette.responses import Response

from gateway import documentation
from gateway.answers import Readiness
from gateway.backend import backend_of

router = APIRouter(tags=["health"])


@router.api_route("/livez", methods=["GET", "HEAD"], **documentation.LIVEZ)
async def livez() -> Response:
    """Say that the event loop turns."""
    return Response('{"status":"alive"}', 200, {"Cache-Control": "no-store"}, media_type="application/json")


@router.api_route("/health", methods=["GET", "HEAD"], **documentation.HEALTH)
@router.api_route("/readyz", methods=["GET", "HEAD"], **documentation.READYZ)
async def readyz(request: Request) -> Response:
    """Say whether requests can be served from end to end, and what is missing."""
    backend = backend_of(request)
    readiness = Readiness.of(
        backend.fleet.view,
        draining=backend.drain.begun,
        verbose="verbose" in request.query_params,
        authentication=backend.settings.auth.mode,
    )
    status = 200 if readiness.status == "ready" else 503
    body = readiness.model_dump_json(exclude_none=True)
    return Response(body, status, {"Cache-Control": "no-store"}, media_type="application/json")
