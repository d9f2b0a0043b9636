"""A job record as an answer."""

from collections.abc import Mapping

from starlette.responses import Response

from shared.contracts import TERMINAL, Job, JobStatus


def links(job_id: str) -> dict[str, str]:
    """Return the paths of what can always be asked of a job."""
    path = f"/v1/jobs/{job_id}"
    return {"self": path, "events": f"{path}/events"}


def job_response(job: Job, status: int, headers: Mapping[str, str] | None = None) -> Response:
    """Return the record with links to what can be done with it now."""
    job.links = links(job.id)
    path = job.links["self"]
    if job.status not in TERMINAL:
        job.links["cancel"] = f"{path}/cancel"
    if job.status is JobStatus.AWAITING_APPROVAL:
        job.links["approve"] = f"{path}/approve"
    body = job.model_dump_json(exclude_none=True)
    return Response(body, status, {"Cache-Control": "no-store", **(headers or {})}, media_type="application/json")
