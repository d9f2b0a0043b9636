"""The API's description (OpenAPI 3.1), served as `/openapi.json`.

FastAPI collects the operations; the schemas are those of the models that cross the wire, and what FastAPI adds of
its own accord (its validation error, which is never answered here) is taken out.
"""

import copy
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from pydantic.json_schema import models_json_schema

from gateway.answers import ModelList, Readiness
from gateway.approval import Approval
from gateway.routes.images import Upload
from shared.contracts import Event, GenerationRequest, Job, Problem, UploadedImage

_DESCRIPTION = """\
Pictures from words: a multimodal language model writes the generation prompt, a diffusion model renders it.

Submit with `POST /v1/generations`; follow with `GET /v1/jobs/{id}/events`; fetch with `GET /v1/images/{id}`.
Pictures that requests are about come with them, or are uploaded before with `POST /v1/images`.
Every error is an `application/problem+json` (RFC 9457) with a stable `code` and a `next_step`; a path that is not
listed answers 404 `not_found`, a method that is not listed 405 `method_not_allowed`.
Every answer carries `X-Request-Id`.
"""
_MODELS = (GenerationRequest, Job, Event, Problem, Approval, Upload, UploadedImage, ModelList, Readiness)


def install(app: FastAPI) -> None:
    """Make the app describe itself; the description is built when it is first asked for."""

    def describe() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _describe(app)
        return app.openapi_schema

    app.openapi = describe  # type: ignore[method-assign]  # FastAPI's documented way to extend the description


def _describe(app: FastAPI) -> dict[str, Any]:
    routes = [one for route in app.routes if isinstance(route, APIRoute) for one in _per_method(route)]
    schema = get_openapi(title=app.title, version=app.version, description=_DESCRIPTION, routes=routes)
    for path in schema["paths"].values():
        for operation in path.values():
            _take_out_validation_error(operation)
    _, definitions = models_json_schema(
        [(model, "validation") for model in _MODELS], ref_template="#/components/schemas/{model}"
    )
    schema["components"] = {"schemas": dict(sorted(definitions["$defs"].items()))}
    return schema


def _per_method(route: APIRoute) -> list[APIRoute]:
    """Return the route once per method, each with an id of its own."""
    if len(route.methods) == 1:
        return [route]
    routes = []
    for method in sorted(route.methods):
        one = copy.copy(route)
        one.methods = {method}
        if method == "HEAD":
            one.operation_id = f"head_{route.operation_id}"
        routes.append(one)
    return routes


def _take_out_validation_error(operation: dict[str, Any]) -> None:
    content = operation["responses"].get("422", {}).get("content", {})
    if content.get("application/json", {}).get("schema", {}).get("$ref", "").endswith("/HTTPValidationError"):
        del operation["responses"]["422"]
