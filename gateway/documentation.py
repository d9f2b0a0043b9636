"""What each call answers, for the API's description: parameters, every status, and examples.

The routes read their own headers and bodies, so nothing can be derived from their signatures; a test holds that
what is written here is what they answer.
"""

from typing import Any

from gateway import examples
from gateway.listing import DEFAULT_LISTED, MAX_LISTED
from gateway.problems import MEDIA_TYPE as PROBLEM
from gateway.sse import MEDIA_TYPE as SSE
from shared import errors
from shared.contracts import JobStatus, Task

JSON = "application/json"
_IMAGE_TYPES = ("image/png", "image/jpeg", "image/webp")


def _ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


def _json(description: str, schema: str, example: Any, **headers: str) -> dict[str, Any]:
    answer: dict[str, Any] = {
        "description": description,
        "content": {JSON: {"schema": _ref(schema), "example": example}},
    }
    if headers:
        answer["headers"] = _headers(**headers)
    return answer


def _headers(**headers: str) -> dict[str, Any]:
    return {
        name.replace("_", "-"): {"description": text, "schema": {"type": "string"}} for name, text in headers.items()
    }


_LIMIT_HEADERS = _headers(
    RateLimit="What is left of your limits: `r` of each, all of it again after `t` seconds.",
    RateLimit_Policy="Your limits, where there are any.",
)


def _problems(*refusals: type[errors.LLMGAError]) -> dict[int | str, dict[str, Any]]:
    """Return one answer per status, with one example per code; every call may be refused for want of a key."""
    answers: dict[int | str, dict[str, Any]] = {}
    kinds: list[type[errors.LLMGAError]] = [errors.Unauthenticated, *refusals, errors.InternalError]
    for kind in kinds:
        is_capacity = issubclass(kind, errors.CapacityError)
        answer = answers.setdefault(
            kind.status,
            {"description": "", "content": {PROBLEM: {"schema": _ref("Problem"), "examples": {}}}},
        )
        answer["description"] += f"{', ' if answer['description'] else ''}`{kind.code}`"
        answer["content"][PROBLEM]["examples"][kind.code] = {"value": _example(kind)}
        if is_capacity:
            answer["headers"] = _headers(Retry_After="Seconds after which to try again.")
        if issubclass(kind, errors.LimitExceeded):
            answer["headers"] |= _LIMIT_HEADERS
        if kind is errors.Unauthenticated:
            answer["headers"] = _headers(WWW_Authenticate="`Bearer`: what to send.")
    return answers


def _example(kind: type[errors.LLMGAError]) -> dict[str, Any]:
    problem: dict[str, Any] = {
        "type": f"urn:llmga:problem:{kind.code}",
        "title": kind.title,
        "status": kind.status,
        "code": kind.code,
        "detail": _DETAILS.get(kind.code, "What happened, in a sentence."),
        "next_step": kind.next_step,
        "instance": "urn:llmga:request:req_5d41402abc4b2a76b9719d91",
        "errors": [],
    }
    if kind is errors.InvalidRequest:
        problem["errors"] = [{"field": "n", "code": "out_of_range", "message": "must be at most 8"}]
    if kind is errors.ModelNotServed:
        problem["served_models"] = ["llmga-tiny-sd15"]
    return problem


_DETAILS = {
    "invalid_image": "The PNG file is damaged: it ends too early.",
    "store_unavailable": "The picture could not be stored.",
    "invalid_request": "The request was not accepted because of: n.",
    "malformed_json": "The body stops being JSON at line 1, column 17.",
    "model_not_served": "No worker serves the model of that name.",
    "no_worker": "No worker of the stage `prompt` is there.",
    "not_found": "There is nothing of that id.",
    "queue_full": "1000 jobs are waiting; no more are taken now.",
    "quota_exceeded": "The job costs more than the 2 cost units that you have left for today.",
    "rate_limited": "Your requests come faster than you may send them.",
    "too_many_jobs": "As many of your jobs are under way as you may have.",
    "unauthenticated": "The request carries no API key.",
    "queue_unavailable": "The queue's server does not answer.",
}


def _header(name: str, description: str, schema: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"name": name, "in": "header", "required": False, "description": description, "schema": schema, **more}


_REQUEST_ID = _header(
    "X-Request-Id",
    "Your name for this request, returned and logged; one is made if it is left out or not usable.",
    {"type": "string"},
)
_JOB_EVENTS = {SSE: {"schema": {"type": "string"}, "example": examples.EVENT_STREAM}}


def _body(schema: str, required: bool, requests: dict[str, Any]) -> dict[str, Any]:
    return {"required": required, "content": {JSON: {"schema": _ref(schema), "examples": requests}}}


CREATE_GENERATION: dict[str, Any] = {
    "status_code": 202,
    "operation_id": "create_generation",
    "responses": {
        200: {
            "description": "With `Prefer: wait`: the job has ended. With `Accept: text/event-stream`: its events.",
            "headers": _headers(
                Location="The job record.",
                Preference_Applied="`wait=N`, the seconds that were granted.",
                Idempotency_Replayed="`true` when an earlier request with this key had made the job.",
            ),
            "content": {JSON: {"schema": _ref("Job"), "example": examples.SUCCEEDED_JOB}, **_JOB_EVENTS},
        },
        202: _json(
            "The job is accepted; it is on disk.",
            "Job",
            examples.QUEUED_JOB,
            Location="The job record.",
            Preference_Applied="`wait=N`, when the job had not ended by then.",
            Idempotency_Replayed="`true` when an earlier request with this key had made the job.",
        ),
        **_problems(
            errors.MalformedJSON,
            errors.Gone,
            errors.BodyTooLarge,
            errors.UnsupportedMediaType,
            errors.InvalidRequest,
            errors.InvalidImage,
            errors.ModelNotServed,
            errors.IdempotencyConflict,
            errors.RateLimited,
            errors.TooManyJobs,
            errors.QuotaExceeded,
            errors.QueueFull,
            errors.NoWorker,
            errors.QueueUnavailable,
            errors.StoreUnavailable,
        ),
    },
    "openapi_extra": {
        "parameters": [
            _header(
                "Prefer",
                "`wait=N`: answer when the job has ended, after N seconds at the latest. Leaving then cancels the job, "
                "unless there is an `Idempotency-Key`.",
                {"type": "string"},
                example="wait=60",
            ),
            _header(
                "Idempotency-Key",
                "1 to 255 visible ASCII characters. The same key and body give the same job; another body is refused.",
                {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[!-~]{1,255}$"},
                example="order-1138",
            ),
            _REQUEST_ID,
        ],
        "requestBody": _body("GenerationRequest", True, examples.REQUESTS),
    },
}


def _parameter(name: str, description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "in": "query", "required": False, "description": description, "schema": schema}


def _flag(name: str, description: str) -> dict[str, Any]:
    return {**_parameter(name, description, {"type": "string"}), "allowEmptyValue": True}


LIST_JOBS: dict[str, Any] = {
    "operation_id": "list_jobs",
    "responses": {
        200: _json("A page of your jobs, the latest submission first.", "JobList", examples.JOBS),
        **_problems(errors.InvalidRequest, errors.QueueUnavailable),
    },
    "openapi_extra": {
        "parameters": [
            _parameter("status", "Only jobs of this status.", {"type": "string", "enum": list(JobStatus)}),
            _parameter("task", "Only jobs of this task.", {"type": "string", "enum": list(Task)}),
            _parameter(
                "limit",
                "At most so many jobs.",
                {"type": "integer", "minimum": 1, "maximum": MAX_LISTED, "default": DEFAULT_LISTED},
            ),
            _parameter(
                "after",
                "The `next` of a page, for the page that follows it.",
                {"type": "string", "pattern": "^[0-9]{1,16}$"},
            ),
            _REQUEST_ID,
        ]
    },
}

GET_JOB: dict[str, Any] = {
    "operation_id": "get_job",
    "responses": {
        200: _json("The job record.", "Job", examples.SUCCEEDED_JOB),
        **_problems(errors.NotFound, errors.QueueUnavailable),
    },
    "openapi_extra": {"parameters": [_REQUEST_ID]},
}

GET_EVENTS: dict[str, Any] = {
    "operation_id": "get_job_events",
    "responses": {
        200: {
            "description": "The events as they happen, or with `Accept: application/json` those so far.",
            "content": {
                **_JOB_EVENTS,
                JSON: {"schema": {"type": "array", "items": _ref("Event")}, "example": examples.EVENTS},
            },
        },
        **_problems(errors.NotFound, errors.InvalidRequest, errors.QueueUnavailable),
    },
    "openapi_extra": {
        "parameters": [
            _header(
                "Last-Event-ID",
                "Only what came after this event.",
                {"type": "string", "pattern": "^[0-9]+-[0-9]+$"},
                example="1767225600129-0",
            ),
            _parameter(
                "after",
                "As `Last-Event-ID`, for clients that cannot set headers; the header wins.",
                {"type": "string", "pattern": "^[0-9]+-[0-9]+$"},
            ),
            _REQUEST_ID,
        ]
    },
}

CANCEL_JOB: dict[str, Any] = {
    "operation_id": "cancel_job",
    "responses": {
        200: _json("The job record: canceled, or as it had ended before.", "Job", examples.SUCCEEDED_JOB),
        **_problems(errors.NotFound, errors.BodyTooLarge, errors.QueueUnavailable),
    },
    "openapi_extra": {"parameters": [_REQUEST_ID]},
}

APPROVE_JOB: dict[str, Any] = {
    "operation_id": "approve_job",
    "responses": {
        200: _json("The job record: queued for rendering.", "Job", {**examples.QUEUED_JOB, "stage": "render"}),
        **_problems(
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
        "parameters": [_REQUEST_ID],
        "requestBody": _body(
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
        201: _json(
            "The picture is kept. The same pixels always get the same id.",
            "UploadedImage",
            examples.UPLOADED_IMAGE,
            Location="The picture.",
        ),
        **_problems(
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
        "parameters": [_REQUEST_ID],
        "requestBody": {
            "required": True,
            "content": {
                JSON: {
                    "schema": _ref("Upload"),
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
            "headers": _headers(ETag="The file's SHA-256.", Cache_Control="An id always names the same bytes."),
            "content": {kind: {"schema": {"type": "string", "format": "binary"}} for kind in _IMAGE_TYPES},
        },
        304: {"description": "The copy that `If-None-Match` names is the picture."},
        **_problems(errors.NotFound),
    },
    "openapi_extra": {
        "parameters": [
            _header("If-None-Match", "The `ETag` of a copy that you have.", {"type": "string"}),
            _REQUEST_ID,
        ]
    },
}

LIST_MODELS: dict[str, Any] = {
    "operation_id": "list_models",
    "responses": {
        200: _json("The models that live workers serve.", "ModelList", examples.MODELS),
        **_problems(errors.QueueUnavailable),
    },
    "openapi_extra": {
        "parameters": [
            _REQUEST_ID,
            _flag("published", "If present, the published LLMGA checkpoints are listed too, with what they take."),
        ]
    },
}

GET_MODEL: dict[str, Any] = {
    "operation_id": "get_model",
    "responses": {
        200: _json("What is known of the model.", "ModelCard", examples.MODELS["data"][0]),
        **_problems(errors.NotFound, errors.QueueUnavailable),
    },
    "openapi_extra": {"parameters": [_REQUEST_ID]},
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
            200: _json("The queue answers and each stage has a ready worker.", "Readiness", examples.READY),
            503: _json("Something is missing.", "Readiness", examples.NOT_READY),
        },
        "openapi_extra": {
            "parameters": [_flag("verbose", "If present, what each worker says of itself is shown.")],
        },
    }


READYZ = _readyz("readyz")
HEALTH = _readyz("health")
