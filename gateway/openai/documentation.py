"""What OpenAI's calls answer here, for the API's description: every status, and examples."""

from typing import Any

from pydantic import BaseModel

from gateway.describing import events_of
from gateway.openai import examples
from gateway.openai.image_answers import Call
from gateway.openai.image_requests import ImageBody, VariationOptions
from shared import errors
from shared.contracts import OpenAIErrorEnvelope, Problem, openai_status

_JSON = "application/json"
_FORM = "multipart/form-data"
_FILE = {"type": "string", "format": "binary"}
_IDEMPOTENCY_KEY = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "description": "The same key and body give the same job, and leaving does not cancel it.",
    "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[!-~]{1,255}$"},
}
_SUBMITTING: tuple[type[errors.LLMGAError], ...] = (
    errors.Unauthenticated,
    errors.BodyTooLarge,
    errors.BodyTooSlow,
    errors.UnsupportedMediaType,
    errors.InvalidRequest,
    errors.ModelNotServed,
    errors.IdempotencyConflict,
    errors.RateLimited,
    errors.TooManyJobs,
    errors.QuotaExceeded,
    errors.QueueFull,
    errors.NoWorker,
    errors.QueueUnavailable,
    errors.Overloaded,
    errors.Draining,
    errors.Gone,
    errors.TimedOut,
    errors.RenderFailed,
    errors.PromptEmpty,
)


def _ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


def _refusals(*kinds: type[errors.LLMGAError]) -> dict[int | str, dict[str, Any]]:
    """Return one answer per status, with one example per code."""
    answers: dict[int | str, dict[str, Any]] = {}
    refusals: list[type[errors.LLMGAError]] = [*kinds, errors.InternalError]
    for kind in refusals:
        problem = Problem(
            type=f"urn:llmga:problem:{kind.code}",
            title=kind.title,
            status=kind.status,
            code=kind.code,
            detail="What happened, in a sentence.",
            next_step=kind.next_step,
        )
        answer = answers.setdefault(
            openai_status(problem),
            {"description": "", "content": {_JSON: {"schema": _ref("OpenAIErrorEnvelope"), "examples": {}}}},
        )
        answer["description"] += f"{', ' if answer['description'] else ''}`{kind.code}`"
        examples_of = answer["content"][_JSON]["examples"]
        examples_of[kind.code] = {"value": OpenAIErrorEnvelope.of(problem).model_dump()}
        if issubclass(kind, errors.CapacityError):
            answer["headers"] = {
                "Retry-After": {"description": "Seconds after which to try again.", "schema": {"type": "string"}}
            }
    return answers


def _pictures(*, streams: bool) -> dict[str, Any]:
    content: dict[str, Any] = {_JSON: {"schema": _ref("ImagesAnswer"), "example": examples.IMAGES}}
    if streams:
        names = [f"{call}.{what}" for call in Call for what in ("partial_image", "completed")]
        content |= events_of(examples.IMAGE_STREAM, [*names, "error"])
    words = "The pictures." + (" With `stream`: pictures on the way, then each finished one." if streams else "")
    return {"description": words, "content": content}


def _form(model: type[BaseModel], *files: str) -> dict[str, Any]:
    """Return a form of a model's fields and of files, the first of which is required."""
    schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
    del schema["$defs"]  # they are among the description's own
    schema["properties"] |= dict.fromkeys(files, _FILE)
    schema["required"] = [*schema.get("required", ()), files[0]]
    return {"required": True, "content": {_FORM: {"schema": schema}}}


CREATE_IMAGES: dict[str, Any] = {
    "operation_id": "create_images",
    "responses": {200: _pictures(streams=True), **_refusals(errors.MalformedJSON, *_SUBMITTING)},
    "openapi_extra": {
        "parameters": [_IDEMPOTENCY_KEY],
        "requestBody": {
            "required": True,
            "content": {_JSON: {"schema": _ref("ImageBody"), "examples": examples.IMAGE_REQUESTS}},
        },
    },
}
EDIT_IMAGE: dict[str, Any] = {
    "operation_id": "edit_image",
    "responses": {
        200: _pictures(streams=True),
        **_refusals(errors.MalformedMultipart, errors.InvalidImage, *_SUBMITTING, errors.StoreUnavailable),
    },
    "openapi_extra": {"parameters": [_IDEMPOTENCY_KEY], "requestBody": _form(ImageBody, "image", "mask")},
}
VARY_IMAGE: dict[str, Any] = {
    "operation_id": "vary_image",
    "responses": {
        200: _pictures(streams=False),
        **_refusals(errors.MalformedMultipart, errors.InvalidImage, *_SUBMITTING, errors.StoreUnavailable),
    },
    "openapi_extra": {"parameters": [_IDEMPOTENCY_KEY], "requestBody": _form(VariationOptions, "image")},
}
COMPLETE_CHAT: dict[str, Any] = {
    "operation_id": "complete_chat",
    "responses": {
        200: {
            "description": "The answer. With `stream`: its chunks, and `[DONE]`.",
            "content": {
                _JSON: {"schema": _ref("ChatCompletion"), "example": examples.CHAT},
                **events_of(examples.CHAT_STREAM, ("message", "error")),
            },
        },
        **_refusals(
            errors.MalformedJSON,
            errors.InvalidImage,
            errors.PromptTooLong,
            *_SUBMITTING,
        ),
    },
    "openapi_extra": {
        "requestBody": {
            "required": True,
            "content": {_JSON: {"schema": _ref("ChatBody"), "examples": examples.CHAT_REQUESTS}},
        }
    },
}
