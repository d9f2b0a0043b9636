"""What became of a submission."""

from dataclasses import dataclass

from shared.contracts import Job
from shared.contracts.limits import UNBOUNDED, Standing
from shared.errors import Gone, IdempotencyConflict
from shared.jobs.records import job_of
from shared.jobs.scripts import View, ViewReply


@dataclass(frozen=True, slots=True)
class Submitted:
    """A job that was accepted (`created`), or that an earlier submission with the same key had made.

    `standing`: what is left of the tenant's limits, where they were asked for.
    """

    job: Job
    created: bool
    standing: Standing = UNBOUNDED


def known_job(reply: ViewReply) -> Submitted | None:
    """Return the job that a submission's idempotency key had made before, None when the key is new.

    Raises:
        IdempotencyConflict: the key came before with another body.
        Gone: the key came before, and its job is no longer kept.
    """
    if reply.outcome == "conflict":
        raise IdempotencyConflict("This key was used before, with another request.")
    if reply.outcome == "gone":
        raise Gone(
            "This key was used before, and the job that it made is no longer kept.",
            next_step="Use a new `Idempotency-Key` to submit the request again.",
        )
    if reply.outcome != "known":
        return None
    view = present(reply.view)
    return Submitted(job_of(view, view.record["id"]), created=False)


def present(view: View | None) -> View:
    """Return the view that an outcome comes with."""
    if view is None:
        raise RuntimeError("the script answered without a job")
    return view
