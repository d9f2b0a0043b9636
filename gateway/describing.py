"""The parts of the API's description: answers with their examples, problems, headers, parameters."""

from collections.abc import Sequence
from typing import Any

from gateway import examples
from gateway.listing import DEFAULT_LISTED, MAX_LISTED
from gateway.problems import MEDIA_TYPE as PROBLEM
from gateway.sse import MEDIA_TYPE as SSE
from shared import errors
from shared.contracts import EventType

JSON = "application/json"
EVENT_ID = "[0-9]{1,19}-[0-9]{1,19}"


def events_of(example: str, names: Sequence[str], *, have_ids: bool = False) -> dict[str, Any]:
    """Return a stream of events with JSON in them; `names` are theirs, `message` being that of an event without one.

    `itemSchema` is OpenAPI 3.2's word for what each event is; readers of 3.1 pass over it.
    """
    event: dict[str, Any] = {
        "type": "object",
        "properties": {
            "event": {"type": "string", "enum": list(names)},
            "data": {"type": "string", "contentMediaType": JSON},
        },
        "required": ["data"] if "message" in names else ["event", "data"],
    }
    if have_ids:
        event["properties"]["id"] = {"type": "string", "pattern": f"^{EVENT_ID}$"}
        event["required"].append("id")
    return {SSE: {"itemSchema": event, "example": example}}


JOB_EVENTS = events_of(examples.EVENT_STREAM, list(EventType), have_ids=True)


def ref(name: str) -> dict[str, str]:
    """Return a reference to a schema by its name."""
    return {"$ref": f"#/components/schemas/{name}"}


def answer_of(description: str, schema: str, example: Any, **headers: str) -> dict[str, Any]:
    """Return an answer in JSON, with an example and the headers that come with it."""
    answer: dict[str, Any] = {
        "description": description,
        "content": {JSON: {"schema": ref(schema), "example": example}},
    }
    if headers:
        answer["headers"] = headers_of(**headers)
    return answer


def headers_of(**headers: str) -> dict[str, Any]:
    """Return headers of an answer with their meanings; `_` in a name stands for `-`."""
    return {
        name.replace("_", "-"): {"description": text, "schema": {"type": "string"}} for name, text in headers.items()
    }


_LIMIT_HEADERS = headers_of(
    RateLimit="What is left of your limits: `r` of each, all of it again after `t` seconds.",
    RateLimit_Policy="Your limits, where there are any.",
)


def problems(*refusals: type[errors.LLMGAError]) -> dict[int | str, dict[str, Any]]:
    """Return one answer per status, with one example per code; every call may be refused for want of a key."""
    answers: dict[int | str, dict[str, Any]] = {}
    kinds: list[type[errors.LLMGAError]] = [errors.Unauthenticated, *refusals, errors.InternalError]
    if errors.BodyTooLarge in refusals:  # it takes a body, of which there may also be too many, or too little at a time
        kinds += [errors.BodyTooSlow, errors.Overloaded]
    for kind in kinds:
        is_capacity = issubclass(kind, errors.CapacityError)
        answer = answers.setdefault(
            kind.status,
            {"description": "", "content": {PROBLEM: {"schema": ref("Problem"), "examples": {}}}},
        )
        answer["description"] += f"{', ' if answer['description'] else ''}`{kind.code}`"
        answer["content"][PROBLEM]["examples"][kind.code] = {"value": _example(kind)}
        if is_capacity:
            answer["headers"] = headers_of(Retry_After="Seconds after which to try again.")
        if issubclass(kind, errors.LimitExceeded):
            answer["headers"] |= _LIMIT_HEADERS
        if kind is errors.Unauthenticated:
            answer["headers"] = headers_of(WWW_Authenticate="`Bearer`: what to send.")
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
    "body_too_slow": "The body stopped coming.",
    "overloaded": "This server has as many large bodies in hand as it can hold.",
    "no_worker": "No worker of the stage `prompt` is there.",
    "not_found": "There is nothing of that id.",
    "queue_full": "1000 jobs are waiting; no more are taken now.",
    "quota_exceeded": "The job costs more than the 2 cost units that you have left for today.",
    "rate_limited": "Your requests come faster than you may send them.",
    "session_full": "The session holds as many turns as a session may.",
    "too_many_jobs": "As many of your jobs are under way as you may have.",
    "too_many_sessions": "You have 1000 sessions; no more are kept.",
    "turn_under_way": "Turn 3, which this one goes on from, has not ended.",
    "unauthenticated": "The request carries no API key.",
    "queue_unavailable": "The queue's server does not answer.",
}


def header(name: str, description: str, schema: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Return a header that a request may have."""
    return {"name": name, "in": "header", "required": False, "description": description, "schema": schema, **more}


REQUEST_ID = header(
    "X-Request-Id",
    "Your name for this request, returned and logged; one is made if it is left out or not usable.",
    {"type": "string"},
)


WAIT = header(
    "Prefer",
    "`wait=N`: answer when the job has ended, after N seconds at the latest. Leaving then cancels the job, unless "
    "there is an `Idempotency-Key`.",
    {"type": "string"},
    example="wait=60",
)
IDEMPOTENCY_KEY = header(
    "Idempotency-Key",
    "1 to 255 visible ASCII characters. The same key and body give the same result; another body is refused.",
    {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[!-~]{1,255}$"},
    example="order-1138",
)


def body_of(schema: str, required: bool, requests: dict[str, Any]) -> dict[str, Any]:
    """Return a body in JSON with its examples."""
    return {"required": required, "content": {JSON: {"schema": ref(schema), "examples": requests}}}


def parameter(name: str, description: str, schema: dict[str, Any]) -> dict[str, Any]:
    """Return a parameter of a query."""
    return {"name": name, "in": "query", "required": False, "description": description, "schema": schema}


def flag(name: str, description: str) -> dict[str, Any]:
    """Return a parameter that is there or not."""
    return {**parameter(name, description, {"type": "string"}), "allowEmptyValue": True}


def paging(what: str) -> list[dict[str, Any]]:
    """Return the parameters that choose a page of a list."""
    limit = {"type": "integer", "minimum": 1, "maximum": MAX_LISTED, "default": DEFAULT_LISTED}
    place = {"type": "string", "pattern": "^[0-9]{1,16}$"}
    return [
        parameter("limit", f"At most so many {what}.", limit),
        parameter("after", "The `next` of a page, for the page that follows it.", place),
    ]


def job_answers(*refusals: type[errors.LLMGAError]) -> dict[int | str, dict[str, Any]]:
    """Return what a call answers that makes a job (`gateway.hearing`)."""
    replayed = "`true` when an earlier request with this key had made the job."
    return {
        200: {
            "description": "With `Prefer: wait`: the job has ended. With `Accept: text/event-stream`: its events.",
            "headers": headers_of(
                Location="The job record.",
                Preference_Applied="`wait=N`, the seconds that were granted.",
                Idempotency_Replayed=replayed,
            ),
            "content": {JSON: {"schema": ref("Job"), "example": examples.SUCCEEDED_JOB}, **JOB_EVENTS},
        },
        202: answer_of(
            "The job is accepted; it is on disk.",
            "Job",
            examples.QUEUED_JOB,
            Location="The job record.",
            Preference_Applied="`wait=N`, when the job had not ended by then.",
            Idempotency_Replayed=replayed,
        ),
        **problems(
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
            *refusals,
        ),
    }
