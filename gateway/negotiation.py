"""What a client asks for in its headers: `Accept`, `Prefer` and `Idempotency-Key`.

A header that is only a wish (`Accept`, `Prefer`) and makes no sense is ignored, as RFC 9110 and RFC 7240 say. One
that is a promise (`Idempotency-Key`, `Last-Event-ID`) is refused, because ignoring it would break the promise.
"""

import re
from collections.abc import Sequence

from shared.contracts import FieldProblem
from shared.errors import InvalidRequest
from shared.jobs.follower import START, is_event_id

DEFAULT_WAIT_S = 60.0  # `Prefer: wait` without a number, as in cog
MAX_KEY_CHARS = 255

_WAIT = re.compile(r"""^wait(?:\s*=\s*"?(\d{1,9}(?:\.\d{1,6})?)"?)?$""", re.IGNORECASE)
_KEY = re.compile(r"[\x21-\x7e]{1,255}")


def best_media_type(accept: str | None, offered: Sequence[str]) -> str:
    """Return the media type of `offered` that `accept` likes best; the first where it says nothing else.

    RFC 9110 §12.5.1: the most specific range that matches decides a type's quality.
    """
    if not accept:
        return offered[0]
    ranges = [_media_range(part) for part in accept.split(",") if part.strip()]
    best, best_rank = offered[0], (0.0, -1)
    for media_type in offered:
        rank = (0.0, -1)
        for pattern, quality in ranges:
            specificity = _specificity(pattern, media_type)
            if specificity > rank[1]:
                rank = (quality, specificity)
        if rank[0] > 0 and rank > best_rank:
            best, best_rank = media_type, rank
    return best


def _media_range(part: str) -> tuple[str, float]:
    pattern, *parameters = (piece.strip() for piece in part.split(";"))
    quality = 1.0
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip().lower() == "q":
            try:
                quality = min(max(float(value), 0.0), 1.0)
            except ValueError:
                quality = 0.0
    return pattern.lower(), quality


def _specificity(pattern: str, media_type: str) -> int:
    if pattern == media_type:
        return 2
    if pattern == media_type.partition("/")[0] + "/*":
        return 1
    return 0 if pattern == "*/*" else -1


def preferred_wait_s(prefer: Sequence[str], max_wait_s: float) -> float | None:
    """Return how long the client would wait for the finished job, at most `max_wait_s`; `None` without a wish.

    `prefer` holds the values of all `Prefer` headers (RFC 7240 §4.3).
    """
    for value in prefer:
        for preference in value.split(","):
            match = _WAIT.match(preference.partition(";")[0].strip())
            if match is not None:
                return min(float(match[1]) if match[1] else DEFAULT_WAIT_S, max_wait_s)
    return None


def idempotency_key(value: str | None) -> str | None:
    """Return the key.

    Raises:
        InvalidRequest: it is empty, too long or holds anything but visible ASCII characters.
    """
    if value is None or _KEY.fullmatch(value):
        return value
    message = f"must be 1 to {MAX_KEY_CHARS} visible ASCII characters"
    raise InvalidRequest(
        "The `Idempotency-Key` header is not usable.",
        errors=[FieldProblem(field="Idempotency-Key", code="not_a_key", message=message)],
    )


def event_id(last_event_id: str | None, after: str | None) -> str:
    """Return the id after which events are wanted; the start for all.

    The header wins: a browser that reconnects sends it beside the URL that it was first given.

    Raises:
        InvalidRequest: one of them is not an event's id.
    """
    for field, given in (("Last-Event-ID", last_event_id), ("after", after)):
        if given and not is_event_id(given):
            message = "must be the `id` of an event of this job"
            problem = FieldProblem(field=field, code="not_an_event_id", message=message)
            raise InvalidRequest(f"`{field}` is not the id of an event.", errors=[problem])
    return last_event_id or after or START
