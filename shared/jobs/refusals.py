"""Why the queue does not take a job now, and when it is worth asking again."""

import math

from shared.contracts.limits import Standing
from shared.errors import (
    LimitExceeded,
    LLMGAError,
    NotFound,
    QueueFull,
    QuotaExceeded,
    RateLimited,
    SessionFull,
    TooManyJobs,
)

MIN_RETRY_AFTER_S, MAX_RETRY_AFTER_S = 1, 300
UNMEASURED_RETRY_AFTER_S = 30  # nothing has finished yet, so nothing is known


def queue_full(max_queued: int, drain_rate: float) -> QueueFull:
    """Ask the client to return when a tenth of the queue will be free, so that it finds room."""
    return QueueFull(
        f"{max_queued} jobs are waiting; no more are taken now.",
        retry_after_s=_until_drained(max(1, max_queued / 10), drain_rate),
    )


def limit_exceeded(limit: str, wait_ms: int, drain_rate: float, standing: Standing) -> LimitExceeded:
    """Return the refusal by one of a tenant's limits, named as in `Standing`."""
    if limit == "requests":
        detail = "Your requests come faster than you may send them."
        return RateLimited(detail, retry_after_s=_whole_seconds(wait_ms), standing=standing)
    if limit == "jobs":
        detail = "As many of your jobs are under way as you may have."
        return TooManyJobs(detail, retry_after_s=_until_drained(1, drain_rate), standing=standing)
    left = 0 if standing.units is None else standing.units.amount
    detail = f"The job costs more than the {left} cost units that you have left for today."
    return QuotaExceeded(detail, retry_after_s=_whole_seconds(wait_ms), standing=standing)


def no_turn(full_of: str) -> LLMGAError:
    """Return why a session takes no turn: it is full of `turns` or `bytes`, or it is not there."""
    if full_of:
        return SessionFull(f"The session holds as many {full_of} as a session may.")
    return NotFound("There is no session of that id.")


def _until_drained(jobs: float, drain_rate: float) -> int:
    """Return the nearest whole seconds: of a wait of four, rounding up alone would add a quarter."""
    wait_s = jobs / drain_rate if drain_rate > 0 else UNMEASURED_RETRY_AFTER_S
    return min(MAX_RETRY_AFTER_S, max(MIN_RETRY_AFTER_S, math.floor(wait_s + 0.5)))


def _whole_seconds(wait_ms: int) -> int:
    return max(MIN_RETRY_AFTER_S, math.ceil(wait_ms / 1_000))
