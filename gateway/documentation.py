"""What each call answers, for the API's description: parameters, every status, and examples.

The routes read their own headers and bodies, so nothing can be derived from their signatures; a test holds that
what is written here is what they answer.
"""

from typing import Any

from gateway import examples
from gateway.describing import (
    EVENT_ID,
    IDEMPOTENCY_KEY,
    JOB_EVENTS,
    JSON,
    REQUEST_ID,
    WAIT,
    answer_of,
    body_of,
    flag,
    header,
    headers_of,
    job_answers,
    paging,
    parameter,
    problems,
    ref,
)
from shared import errors
from shared.contracts import JobStatus, Task

_AFTER = {"type": "string", "pattern": f"^({EVENT_ID})?$"}  # empty: from the start
_IMAGE_TYPES = ("image/png", "image/jpeg", "image/webp")

CREATE_GENERATION: dict[str, Any] = {
    "status_code": 202,
    "operation_id": "create_generation",
    "responses": job_answers(),
    "openapi_extra": {
        "parameters": [WAIT, IDEMPOTENCY_KEY, REQUEST_ID],
        "requestBody": body_of("GenerationRequest", True, examples.REQUESTS),
    },
}


LIST_JOBS: dict[str, Any] = {
    "operation_id": "list_jobs",
    "responses": {
        200: answer_of("A page of your jobs, the latest submission first.", "JobList", examples.JOBS),
        **problems(errors.InvalidRequest, errors.QueueUnavailable),
    },
    "openapi_extra": {
        "parameters": [
            parameter("status", "Only jobs of this status.", {"type": "string", "enum": list(JobStatus)}),
            parameter("task", "Only jobs of this task.", {"type": "string", "enum": list(Task)}),
            *paging("jobs"),
            REQUEST_ID,
        ]
    },
}

GET_JOB: dict[str, Any] = {
    "operation_id": "get_job",
    "responses": {
        200: answer_of("The job record.", "Job", examples.SUCCEEDED_JOB),
        **problems(errors.NotFound, errors.QueueUnavailable),
    },
    "openapi_extra": {"parameters": [REQUEST_ID]},
}

GET_EVENTS: dict[str, Any] = {
    "operation_id": "get_job_events",
    "responses": {
        200: {
            "description": "The events as they happen, or with `Accept: application/json` those so far.",
            "content": {
                **JOB_EVENTS,
                JSON: {"schema": {"type": "array", "items": ref("Event")}, "example": examples.EVENTS},
            },
        },
        **problems(errors.NotFound, errors.InvalidRequest, errors.QueueUnavailable),
    },
    "openapi_extra": {
        "parameters": [
            header(
                "Last-Event-ID",
                "Only what came after this event.",
                _AFTER,
                example="1767225600129-0",
            ),
            parameter(
                "after",
                "As `Last-Event-ID`, for clients that cannot set headers; the header wins.",
                _AFTER,
            ),
            REQUEST_ID,
        ]
    },
}

CANCEL_JOB: dict[str, Any] = {
    "operation_id": "cancel_job",
    "responses": {
        200: answer_of("The job record: canceled, or as it had ended before.", "Job", examples.SUCCEEDED_JOB),
        **problems(errors.NotFound, errors.BodyTooLarge, errors.QueueUnavailable),
    },
    "openapi_extra": {"parameters": [REQUEST_ID]},
}

APPROVE_JOB: dict[str, Any] = {
    "operation_id": "approve_job",
    "responses": {
        200: answer_of("The job record: queued for rendering.", "Job", {**examples.QUEUED_JOB, "stage": "render"}),
        **problems(
            errors.MalformedJSON,
            errors.NotFound,
            errors.NotAwaitingApproval,
            errors.BodyTooLarge,
            errors.UnsupportedMediaType,
            errors.InvalidRequest,
            errors.QueueUnavailable,
        ),
    },
    "openapi_extra": {
        "parameters": [REQUEST_ID],
        "requestBody": body_of(
            "Approval",
            False,
            {
                "as it is": {"value": {}},
                "edited": {"value": {"prompt": "a snowman at night, falling snow, blue light"}},
            },
        ),
    },
}

UPLOAD_IMAGE: dict[str, Any] = {
    "status_code": 201,
    "operation_id": "upload_image",
    "responses": {
        201: answer_of(
            "The picture is kept. The same pixels always get the same id.",
            "UploadedImage",
            examples.UPLOADED_IMAGE,
            Location="The picture.",
        ),
        **problems(
            errors.MalformedJSON,
            errors.BodyTooLarge,
            errors.UnsupportedMediaType,
            errors.InvalidRequest,
            errors.InvalidImage,
            errors.RateLimited,
            errors.QueueUnavailable,
            errors.StoreUnavailable,
        ),
    },
    "openapi_extra": {
        "parameters": [REQUEST_ID],
        "requestBody": {
            "required": True,
            "content": {
                JSON: {
                    "schema": ref("Upload"),
                    "examples": {"a red pixel": {"value": {"image": examples.PIXEL}}},
                },
                **{kind: {"schema": {"type": "string", "format": "binary"}} for kind in _IMAGE_TYPES},
            },
        },
    },
}

GET_IMAGE: dict[str, Any] = {
    "operation_id": "get_image",
    "responses": {
        200: {
            "description": "The picture's file.",
            "headers": headers_of(ETag="The file's SHA-256.", Cache_Control="An id always names the same bytes."),
            "content": {kind: {"schema": {"type": "string", "format": "binary"}} for kind in _IMAGE_TYPES},
        },
        304: {"description": "The copy that `If-None-Match` names is the picture."},
        **problems(errors.NotFound),
    },
    "openapi_extra": {
        "parameters": [
            header("If-None-Match", "The `ETag` of a copy that you have.", {"type": "string"}),
            REQUEST_ID,
        ]
    },
}

LIST_MODELS: dict[str, Any] = {
    "operation_id": "list_models",
    "responses": {
        200: answer_of("The models that live workers serve.", "ModelList", examples.MODELS),
        **problems(errors.QueueUnavailable),
    },
    "openapi_extra": {
        "parameters": [
            REQUEST_ID,
            flag("published", "If present, the published LLMGA checkpoints are listed too, with what they take."),
        ]
    },
}

GET_MODEL: dict[str, Any] = {
    "operation_id": "get_model",
    "responses": {
        200: answer_of("What is known of the model.", "ModelCard", examples.MODELS["data"][0]),
        **problems(errors.NotFound, errors.QueueUnavailable),
    },
    "openapi_extra": {"parameters": [REQUEST_ID]},
}

GET_WEBHOOKS: dict[str, Any] = {
    "operation_id": "get_webhooks",
    "responses": {
        200: answer_of("Where webhooks may go, and your secret.", "WebhookTerms", examples.WEBHOOK_TERMS),
        **problems(),
    },
    "openapi_extra": {"parameters": [REQUEST_ID]},
}

LIVEZ: dict[str, Any] = {
    "operation_id": "livez",
    "responses": {
        200: {
            "description": "The event loop turns.",
            "content": {JSON: {"schema": {"type": "object"}, "example": {"status": "alive"}}},
        }
    },
}


def _readyz(operation_id: str) -> dict[str, Any]:
    return {
        "operation_id": operation_id,
        "responses": {
            200: answer_of("The queue answers and each stage has a ready worker.", "Readiness", examples.READY),
            503: answer_of("Something is missing.", "Readiness", examples.NOT_READY),
        },
        "openapi_extra": {
            "parameters": [flag("verbose", "If present, what each worker says of itself is shown.")],
        },
    }


READYZ = _readyz("readyz")
HEALTH = _readyz("health")
