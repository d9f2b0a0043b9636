"""Examples of sessions for the API's description; a test checks each against its model."""

from typing import Any

from gateway.examples import JOB_ID, REQUEST, SUCCEEDED_JOB

SESSION_ID = "ses_6c1d0d2f8a7b4b3f9a30c2b7f0e1d4a5"

SESSION_REQUESTS: dict[str, dict[str, Any]] = {
    "unnamed": {"summary": "Nothing but a session", "value": {}},
    "named": {"summary": "With a name for people", "value": {"name": "the house by the sea"}},
}
TURN_REQUESTS: dict[str, dict[str, Any]] = {
    "first": {"summary": "What begins it", "value": {"instruction": "draw a house by the sea", "seed": 7}},
    "change": {"summary": "Go on from the latest turn", "value": {"instruction": "make the sky darker"}},
    "earlier picture": {"summary": "By words", "value": {"instruction": "put a boat into the second one"}},
    "branch": {"summary": "Go on from an earlier turn", "value": {"instruction": "at night", "parent": 1}},
    "chosen picture": {
        "summary": "A picture by its place",
        "value": {"instruction": "at night", "refers_to": {"turn": 1, "index": 0}},
    },
    "again": {"summary": "The same prompt with another seed", "value": {"rerender": 1, "seed": 8}},
}

SUMMARY: dict[str, Any] = {
    "id": SESSION_ID,
    "object": "session",
    "name": "the house by the sea",
    "created_at": 1767225600.0,
    "updated_at": 1767225600.125,
    "expires_at": 1767312000.125,
    "turn_count": 1,
}
SESSION: dict[str, Any] = {
    **SUMMARY,
    "turns": [
        {
            "id": 1,
            "job_id": JOB_ID,
            "created_at": 1767225600.125,
            "task_chosen_by": "session",
            "history": [],
            "request": REQUEST,
            "status": "succeeded",
            "prompt": SUCCEEDED_JOB["prompt"],
            "images": SUCCEEDED_JOB["images"],
        }
    ],
}
SESSIONS: dict[str, Any] = {"object": "list", "data": [SUMMARY]}
