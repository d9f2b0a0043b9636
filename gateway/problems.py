"""Errors as clients see them, in our words only: RFC 9457 problems, or the envelope of OpenAI's API.

Which of the two a path speaks is decided here, from the path alone, so that it holds for what is refused before any
route is found.

Whatever a library raises is translated or hidden: the framework's HTTP errors become our error classes, and an
unexpected exception is logged and answered as `internal_error` with the request's id. What pydantic finds is
translated by `shared.validation`.
"""

import logging

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Scope

from shared.contracts import OpenAIErrorEnvelope, Problem, openai_error, openai_status
from shared.errors import (
    CapacityError,
    InternalError,
    InvalidRequest,
    LLMGAError,
    MalformedJSON,
    MethodNotAllowed,
    NotFound,
)
from shared.validation import field_problems

MEDIA_TYPE = "application/problem+json"
OPENAI_PATHS = frozenset(
    {"/v1/images/generations", "/v1/images/edits", "/v1/images/variations", "/v1/chat/completions"}
)
_SHARED_PATH = "/v1/models"  # in both APIs, with what lies below it: problems that hold the envelope's `error`, too

_log = logging.getLogger("llmga.gateway")


def error_response(error: LLMGAError, scope: Scope) -> Response:
    """Return the error as an HTTP answer in the envelope of the request's path."""
    problem = error.to_problem()
    return problem_response(problem, scope, error.retry_after_s if isinstance(error, CapacityError) else None)


def problem_response(problem: Problem, scope: Scope, retry_after_s: int | None = None) -> Response:
    """Return a problem, the request's own or that of its job, as an HTTP answer in the envelope of the path."""
    path = scope["path"]
    headers = {"Cache-Control": "no-store"}
    if retry_after_s is not None:
        headers["Retry-After"] = str(retry_after_s)
    if path in OPENAI_PATHS:
        body = OpenAIErrorEnvelope.of(problem).model_dump_json()
        return Response(body, openai_status(problem), headers, media_type="application/json")
    update: dict[str, object] = {"instance": f"urn:llmga:request:{scope['request_id']}"}
    if path == _SHARED_PATH or path.startswith(f"{_SHARED_PATH}/"):
        update["error"] = openai_error(problem)
    problem = problem.model_copy(update=update)
    return Response(problem.model_dump_json(exclude_none=True), problem.status, headers, media_type=MEDIA_TYPE)


def install(app: FastAPI) -> None:
    """Make every error of the routes a problem."""

    async def ours(request: Request, error: Exception) -> Response:
        assert isinstance(error, LLMGAError)
        if error.status >= 500 and not isinstance(error, CapacityError):
            _log.error("request failed", exc_info=error)
        return error_response(error, request.scope)

    async def framework(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        response = error_response(_from_http(error), request.scope)
        response.headers.update(error.headers or {})
        if error.status_code == 405:
            response.headers["Allow"] = _methods(request)
        return response

    async def parameters(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        found = InvalidRequest("The request's parameters are not valid.", errors=field_problems(error.errors(), None))
        return error_response(found, request.scope)

    app.add_exception_handler(LLMGAError, ours)
    app.add_exception_handler(HTTPException, framework)
    app.add_exception_handler(RequestValidationError, parameters)


def _methods(request: Request) -> str:
    """Return the methods of a path; the framework knows those of the first route of several alone."""
    path = request.scope["route"].path
    routes = (route for route in request.app.routes if isinstance(route, APIRoute) and route.path == path)
    return ", ".join(sorted({method for route in routes for method in route.methods}))


def _from_http(error: HTTPException) -> LLMGAError:
    if error.status_code == 404:
        return NotFound("There is nothing under this path.")
    if error.status_code == 405:
        return MethodNotAllowed("This path does not take this method.")
    if error.status_code == 400:
        return MalformedJSON("The request could not be read.")
    return InternalError("The request could not be answered.")
