"""Errors as clients see them: RFC 9457 problems, in our words only.

Whatever a library raises is translated here or hidden: pydantic's errors become `FieldProblem`s, the framework's
HTTP errors become our error classes, and an unexpected exception is logged and answered as `internal_error` with
the request's id.
"""

import difflib
import enum
import logging
import types
import typing
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from starlette.exceptions import HTTPException
from starlette.responses import Response

from shared.contracts import FieldProblem
from shared.errors import (
    CapacityError,
    InternalError,
    InvalidRequest,
    LLMGAError,
    MalformedJSON,
    MethodNotAllowed,
    NotFound,
)

MEDIA_TYPE = "application/problem+json"
MAX_FIELD_PROBLEMS = 20
MAX_NAME_CHARS = 64  # a client's own field name, repeated to it

_log = logging.getLogger("llmga.gateway")

_TYPES = {
    "string": "a string",
    "int": "an integer",
    "float": "a number",
    "bool": "true or false",
    "list": "an array",
    "enum": "a string",
    "model": "an object",
    "dict": "an object",
}
_BOUNDS = {
    "greater_than_equal": ("ge", "must be at least"),
    "less_than_equal": ("le", "must be at most"),
    "greater_than": ("gt", "must be greater than"),
    "less_than": ("lt", "must be less than"),
}
# Our own validators raise ValueError with a sentence of ours; the field tells which rule it was.
_VALIDATOR_CODES = {"size": "not_a_size", "instruction": "not_text", "prompt": "not_text", "": "contradiction"}


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


def validation_problem(error: ValidationError, model: type[BaseModel]) -> InvalidRequest:
    """Return pydantic's verdict on a `model` in our own words."""
    problems = field_problems(error.errors(include_url=False), model)
    names = ", ".join(sorted({problem.field or "the body" for problem in problems}))
    return InvalidRequest(f"The request was not accepted because of: {names}.", errors=problems)


def field_problems(errors: Sequence[ErrorDetails], model: type[BaseModel] | None) -> list[FieldProblem]:
    """Return one problem per fault, at most `MAX_FIELD_PROBLEMS`."""
    return [_field_problem(error, model) for error in errors[:MAX_FIELD_PROBLEMS]]


def _field_problem(error: ErrorDetails, model: type[BaseModel] | None) -> FieldProblem:
    path = [str(part)[:MAX_NAME_CHARS] for part in error["loc"]]
    field = ".".join(path)
    code, message = _verdict(error, field, model)
    return FieldProblem(field=field, code=code, message=message)


def _verdict(error: ErrorDetails, field: str, model: type[BaseModel] | None) -> tuple[str, str]:
    kind, context = error["type"], error.get("ctx", {})
    if kind in _BOUNDS:
        bound, words = _BOUNDS[kind]
        return "out_of_range", f"{words} {context[bound]}"
    match kind:
        case "extra_forbidden":
            near = difflib.get_close_matches(field, model.model_fields if model else (), n=1)
            hint = f"; did you mean `{near[0]}`?" if near else ""
            return "unknown_field", f"is not a field of this request{hint}"
        case "missing":
            return "missing", "is required"
        case "string_too_long":
            return "too_long", f"must have at most {context['max_length']} characters"
        case "string_too_short":
            return "too_short", f"must have at least {context['min_length']} characters"
        case "finite_number":
            return "not_finite", "must be a finite number"
        case "enum" if isinstance(error["input"], str):
            return "not_offered", f"must be one of {', '.join(_choices(field, model))}"
        case "value_error":
            return _VALIDATOR_CODES.get(field, "not_valid"), str(context["error"])
    expected = _TYPES.get(kind.partition("_")[0])
    if expected is not None:
        return "wrong_type", f"must be {expected}"
    return "not_valid", "is not valid here"


def _choices(field: str, model: type[BaseModel] | None) -> list[str]:
    info = model.model_fields.get(field) if model else None
    return [str(member.value) for member in _enum_members(info.annotation if info else None)]


def _enum_members(annotation: Any) -> list[enum.Enum]:
    if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        return list(annotation)
    if typing.get_origin(annotation) in {typing.Union, types.UnionType}:
        return [member for part in typing.get_args(annotation) for member in _enum_members(part)]
    return []
