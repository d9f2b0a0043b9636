"""The API's description (OpenAPI 3.1), served as `/openapi.json`.

FastAPI collects the operations; the schemas are those of the models that cross the wire, and what FastAPI adds of
its own accord (its validation error, which is never answered here) is taken out.
"""

import copy
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from pydantic import BaseModel
from pydantic.json_schema import JsonSchemaMode, models_json_schema

from gateway.answers import ModelList, Readiness
from gateway.approval import Approval
from gateway.authentication import OPEN_PATHS
from gateway.openai.chat_shapes import ChatBody, ChatCompletion
from gateway.openai.image_answers import CompletedEvent, ImagesAnswer, PartialImageEvent
from gateway.openai.image_requests import ImageBody, VariationOptions
from gateway.routes.images import Upload
from shared.contracts import Event, GenerationRequest, Job, JobList, OpenAIErrorEnvelope, Problem, UploadedImage
from shared.contracts.sessions import Session, SessionList, SessionRequest, SessionSummary, TurnRequest
from shared.contracts.webhooks import WebhookMessage, WebhookTerms

_DESCRIPTION = """\
Pictures from words: a multimodal language model writes the generation prompt, a diffusion model renders it.

Submit with `POST /v1/generations`; follow with `GET /v1/jobs/{id}/events`; fetch with `GET /v1/images/{id}`;
find what you submitted with `GET /v1/jobs`. `/v1/sessions` keeps conversations, whose turns are jobs.
Pictures that requests are about come with them, or are uploaded before with `POST /v1/images`.
What OpenAI's clients call answers in their shapes, errors too. Every other
error is an `application/problem+json` (RFC 9457) with a stable `code` and a `next_step`; a path that is not
listed answers 404 `not_found`, a method that is not listed 405 `method_not_allowed`.
Every answer carries `X-Request-Id`.
"""
_MODELS = (
    *(GenerationRequest, Job, JobList, Event, Problem, Approval, Upload, UploadedImage, ModelList, Readiness),
    *(SessionRequest, SessionSummary, Session, SessionList, TurnRequest, WebhookTerms, WebhookMessage),
)
_OPENAI_MODELS = (
    ImageBody,
    VariationOptions,
    ImagesAnswer,
    PartialImageEvent,
    CompletedEvent,
    ChatBody,
    ChatCompletion,
    OpenAIErrorEnvelope,
)

_SECURITY = {
    "api_key": {
        "type": "http",
        "scheme": "bearer",
        "description": "An API key, `llmga_…`, as the operator makes it with `llmga keys create`. A server that is "
        "started with `LLMGA_AUTH__MODE=none` asks for none.",
    }
}


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
    models: list[tuple[type[BaseModel], JsonSchemaMode]] = [
        (model, "serialization" if model is ModelList else "validation")  # it has fields that are computed
        for model in (*_MODELS, *_OPENAI_MODELS)
    ]
    _, definitions = models_json_schema(models, ref_template="#/components/schemas/{model}")
    schema["components"] = {"schemas": dict(sorted(definitions["$defs"].items())), "securitySchemes": _SECURITY}
    schema["security"] = [{name: []} for name in _SECURITY]
    for path in OPEN_PATHS & schema["paths"].keys():
        for operation in schema["paths"][path].values():
            operation["security"] = []
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
