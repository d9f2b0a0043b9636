"""Errors as clients see them: RFC 9457 problems, in our words only.

Whatever a library raises is translated or hidden: the framework's HTTP errors become our error classes, and an
unexpected exception is logged and answered as `internal_error` with the request's id. What pydantic finds is
translated by `shared.validation`.
"""

import logging

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

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

_log = logging.getLogger("llmga.gateway")


def problem_response(error: LLMGAError, request_id: str) -> Response:
    """Return the error as an HTTP answer."""
    problem = error.to_problem(instance=f"urn:llmga:request:{request_id}")
    headers = {"Cache-Control": "no-store"}
    if isinstance(error, CapacityError):
        headers["Retry-After"] = str(error.retry_after_s)
    return Response(problem.model_dump_json(exclude_none=True), error.status, headers, media_type=MEDIA_TYPE)


def request_id_of(request: Request) -> str:
    """Return the id that the edge gave to this request."""
    request_id: str = request.scope["request_id"]
    return request_id


def install(app: FastAPI) -> None:
    """Make every error of the routes a problem."""

    async def ours(request: Request, error: Exception) -> Response:
        assert isinstance(error, LLMGAError)
        if error.status >= 500 and not isinstance(error, CapacityError):
            _log.error("request failed", exc_info=error)
        return problem_response(error, request_id_of(request))

    async def framework(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        response = problem_response(_from_http(error), request_id_of(request))
        response.headers.update(error.headers or {})
        return response

    async def parameters(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        found = InvalidRequest("The request's parameters are not valid.", errors=field_problems(error.errors(), None))
        return problem_response(found, request_id_of(request))

    app.add_exception_handler(LLMGAError, ours)
    app.add_exception_handler(HTTPException, framework)
    app.add_exception_handler(RequestValidationError, parameters)


def _from_http(error: HTTPException) -> LLMGAError:
    if error.status_code == 404:
        return NotFound("There is nothing under this path.")
    if error.status_code == 405:
        return MethodNotAllowed("This path does not take this method.")
    if error.status_code == 400:
        return MalformedJSON("The request could not be read.")
    return InternalError("The request could not be answered.")
