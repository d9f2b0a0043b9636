"""What the calls of sessions answer, for the API's description."""

from typing import Any

from gateway.describing import IDEMPOTENCY_KEY, REQUEST_ID, WAIT, answer_of, body_of, job_answers, paging, problems
from gateway.sessions import examples
from shared import errors

CREATE_SESSION: dict[str, Any] = {
    "status_code": 201,
    "operation_id": "create_session",
    "responses": {
        201: answer_of(
            "The session, still without turns.",
            "SessionSummary",
            examples.SUMMARY,
            Location="The session.",
            Idempotency_Replayed="`true` when an earlier request with this key had made the session.",
        ),
        **problems(
            errors.MalformedJSON,
            errors.TooManySessions,
            errors.Gone,
            errors.BodyTooLarge,
            errors.UnsupportedMediaType,
            errors.InvalidRequest,
            errors.IdempotencyConflict,
            errors.RateLimited,
            errors.QueueUnavailable,
        ),
    },
    "openapi_extra": {
        "parameters": [IDEMPOTENCY_KEY, REQUEST_ID],
        "requestBody": body_of("SessionRequest", False, examples.SESSION_REQUESTS),
    },
}

LIST_SESSIONS: dict[str, Any] = {
    "operation_id": "list_sessions",
    "responses": {
        200: answer_of("A page of your sessions, the latest made first.", "SessionList", examples.SESSIONS),
        **problems(errors.InvalidRequest, errors.QueueUnavailable),
    },
    "openapi_extra": {"parameters": [*paging("sessions"), REQUEST_ID]},
}

GET_SESSION: dict[str, Any] = {
    "operation_id": "get_session",
    "responses": {
        200: answer_of("The session with its tree of turns.", "Session", examples.SESSION),
        **problems(errors.NotFound, errors.QueueUnavailable),
    },
    "openapi_extra": {"parameters": [REQUEST_ID]},
}

DELETE_SESSION: dict[str, Any] = {
    "status_code": 204,
    "operation_id": "delete_session",
    "responses": {
        204: {"description": "The session is forgotten. Jobs of its turns go on."},
        **problems(errors.NotFound, errors.BodyTooLarge, errors.QueueUnavailable),
    },
    "openapi_extra": {"parameters": [REQUEST_ID]},
}

CREATE_TURN: dict[str, Any] = {
    "status_code": 202,
    "operation_id": "create_turn",
    "responses": job_answers(errors.NotFound, errors.TurnUnderWay, errors.SessionFull),
    "openapi_extra": {
        "parameters": [WAIT, IDEMPOTENCY_KEY, REQUEST_ID],
        "requestBody": body_of("TurnRequest", True, examples.TURN_REQUESTS),
    },
}
