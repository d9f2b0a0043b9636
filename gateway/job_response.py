"""Job records as answers."""

from collections.abc import Mapping

from starlette.responses import Response

from shared.contracts import TERMINAL, Job, JobList, JobStatus


def links(job_id: str) -> dict[str, str]:
    """Return the paths of what can always be asked of a job."""
    path = f"/v1/jobs/{job_id}"
    return {"self": path, "events": f"{path}/events"}


def job_response(job: Job, status: int, headers: Mapping[str, str] | None = None) -> Response:
    """Return the record with links to what can be done with it now."""
    _link(job)
    return _answer(job, status, headers)


def jobs_response(page: JobList) -> Response:
    """Return a page of records, each with its links."""
    for job in page.data:
        _link(job)
    return _answer(page, 200)


def _link(job: Job) -> None:
    job.links = links(job.id)
    path = job.links["self"]
    if job.status not in TERMINAL:
        job.links["cancel"] = f"{path}/cancel"
    if job.status is JobStatus.AWAITING_APPROVAL:
        job.links["approve"] = f"{path}/approve"


def _answer(model: Job | JobList, status: int, headers: Mapping[str, str] | None = None) -> Response:
    body = model.model_dump_json(exclude_none=True)
    return Response(body, status, {"Cache-Control": "no-store", **(headers or {})}, media_type="application/json")
