"""The typed REST client.

Synchronous, because its users are scripts, the command line and tests; an event loop calls it in a thread.
Following a job survives lost connections and restarts of the gateway: it reconnects with the id of the last event
it got, so nothing is missed and nothing comes twice. Everything that is refused arrives as `ServerProblem`.
"""

import contextlib
import json
import os
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self

import httpx
from pydantic import ValidationError

from clients.errors import ServerProblem, UnexpectedAnswer, Unreachable
from clients.sse import messages
from shared.contracts import (
    TERMINAL,
    Event,
    GenerationRequest,
    Job,
    JobList,
    JobStatus,
    Problem,
    Task,
    UploadedImage,
)

API_KEY_VARIABLE = "LLMGA_API_KEY"
TIMEOUT_S = 30.0
STREAM_SILENCE_S = 60.0  # the gateway sends a comment every 15 s; four missed ones are a dead connection
PATIENCE_S = 60.0  # how long a follower keeps trying to reconnect without getting anything
RECONNECT_S = 0.5  # first pause between attempts, doubled up to RECONNECT_MAX_S
RECONNECT_MAX_S = 5.0
JOBS_PER_PAGE = 100  # as many as the server gives at once
BUSY_STATUSES = frozenset({429, 502, 503, 504})  # of a server, or a proxy before it, that will be back


class Client:
    """A connection to one gateway."""

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        timeout_s: float = TIMEOUT_S,
        patience_s: float = PATIENCE_S,
    ) -> None:
        """Prepare to connect; `api_key` is that of `LLMGA_API_KEY` if none is given and one is set there."""
        self.url = url.rstrip("/")
        self._timeout_s = timeout_s
        self._patience_s = patience_s
        # A proxy of the environment is for other machines than this one.
        is_local = httpx.URL(self.url).host in ("127.0.0.1", "::1", "localhost")
        key = api_key or os.environ.get(API_KEY_VARIABLE)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._http = httpx.Client(base_url=self.url, headers=headers, timeout=timeout_s, trust_env=not is_local)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def submit(self, request: GenerationRequest, *, idempotency_key: str | None = None) -> Job:
        """Submit a request and return the job, which has only been accepted.

        Raises:
            ServerProblem: it is refused, or the queue is full (`retry_after_s` is set then).
        """
        headers = {"Idempotency-Key": idempotency_key} if idempotency_key else {}
        body = request.model_dump(mode="json", exclude_defaults=True)
        return self._job(self._request("POST", "/v1/generations", json=body, headers=headers))

    def get(self, job_id: str) -> Job:
        """Return the job's record."""
        return self._job(self._request("GET", f"/v1/jobs/{job_id}"))

    def jobs(
        self, *, status: JobStatus | None = None, task: Task | None = None, per_page: int = JOBS_PER_PAGE
    ) -> Iterator[Job]:
        """Yield the jobs that the server keeps, the latest submission first, page by page as they are asked for."""
        wanted: dict[str, str | int] = {"limit": per_page}
        wanted |= {name: value.value for name, value in (("status", status), ("task", task)) if value is not None}
        while True:
            response = self._request("GET", "/v1/jobs", params=wanted)
            try:
                page = JobList.model_validate(self._json(response))
            except ValidationError as error:
                raise UnexpectedAnswer(self.url, response.status_code) from error
            yield from page.data
            if page.next is None:
                return
            wanted["after"] = page.next

    def cancel(self, job_id: str) -> Job:
        """Cancel the job; a job that has ended is returned as it is."""
        return self._job(self._request("POST", f"/v1/jobs/{job_id}/cancel"))

    def approve(self, job_id: str, *, prompt: str | None = None) -> Job:
        """Let a held job go on, with another prompt if one is given."""
        body = {} if prompt is None else {"prompt": prompt}
        return self._job(self._request("POST", f"/v1/jobs/{job_id}/approve", json=body))

    def image(self, image_id: str) -> bytes:
        """Return a picture's file."""
        return self._request("GET", f"/v1/images/{image_id}").content

    def upload(self, data: bytes) -> UploadedImage:
        """Keep a picture (a PNG, JPEG or WebP file) on the server, so that requests can name it by its id.

        Raises:
            ServerProblem: it is no picture, or too large.
        """
        headers = {"Content-Type": "application/octet-stream"}
        response = self._request("POST", "/v1/images", content=data, headers=headers)
        try:
            return UploadedImage.model_validate(self._json(response))
        except ValidationError as error:
            raise UnexpectedAnswer(self.url, response.status_code) from error

    def models(self) -> list[dict[str, Any]]:
        """Return the models that are served now, as `GET /v1/models` lists them."""
        response = self._request("GET", "/v1/models")
        body = self._json(response)
        if not isinstance(body, dict) or not isinstance(body.get("data"), list):
            raise UnexpectedAnswer(self.url, response.status_code)
        return list(body["data"])

    def readiness(self) -> tuple[bool, dict[str, Any]]:
        """Return whether the system can serve, and the details of `/readyz?verbose`."""
        response = self._send("GET", "/readyz", params={"verbose": ""})
        body = self._json(response)
        if response.status_code not in (200, 503) or not isinstance(body, dict):
            raise UnexpectedAnswer(self.url, response.status_code)
        return response.status_code == 200, body

    def events(self, job_id: str, *, after: str | None = None) -> Iterator[Event]:
        """Yield the job's events after the given id (all of them without one), up to its end.

        Raises:
            ServerProblem: there is no such job.
            Unreachable: the server was away for longer than the client's patience.
        """
        last_id = after
        pause_s, silent_since = RECONNECT_S, time.monotonic()
        while True:
            with contextlib.suppress(httpx.TransportError):
                for event in self._stream(job_id, last_id):
                    yield event
                    if event.type.ends_stream:
                        return
                    last_id = event.id
                    pause_s, silent_since = RECONNECT_S, time.monotonic()
            if time.monotonic() - silent_since > self._patience_s:
                raise Unreachable(self.url)
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, RECONNECT_MAX_S)

    def wait(self, job_id: str) -> Job:
        """Return the job when it has ended."""
        job = self.get(job_id)
        if job.status not in TERMINAL:
            for _ in self.events(job_id):
                pass
            job = self.get(job_id)
        return job

    def _stream(self, job_id: str, last_id: str | None) -> Iterator[Event]:
        headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": last_id} if last_id else {})
        timeout = httpx.Timeout(self._timeout_s, read=STREAM_SILENCE_S)
        path = f"/v1/jobs/{job_id}/events"
        with self._http.stream("GET", path, headers=headers, timeout=timeout) as response:
            if response.status_code in BUSY_STATUSES:
                return
            if response.status_code != 200:
                response.read()
                raise self._refusal(response)
            for message in messages(response.iter_lines()):
                yield Event.model_validate(
                    {
                        "id": message.id,
                        "type": message.event,
                        "job_id": job_id,
                        "data": json.loads(message.data),
                    }
                )

    def _request(self, method: str, path: str, **options: Any) -> httpx.Response:
        response = self._send(method, path, **options)
        if response.is_success:
            return response
        raise self._refusal(response)

    def _send(self, method: str, path: str, **options: Any) -> httpx.Response:
        try:
            return self._http.request(method, path, **options)
        except httpx.TransportError as error:
            raise Unreachable(self.url) from error

    def _refusal(self, response: httpx.Response) -> ServerProblem | UnexpectedAnswer:
        try:
            problem = Problem.model_validate(self._json(response))
        except ValidationError:
            return UnexpectedAnswer(self.url, response.status_code)
        retry_after = response.headers.get("Retry-After", "")
        return ServerProblem(problem, retry_after_s=float(retry_after) if retry_after.isdigit() else None)

    def _job(self, response: httpx.Response) -> Job:
        try:
            return Job.model_validate(self._json(response))
        except ValidationError as error:
            raise UnexpectedAnswer(self.url, response.status_code) from error

    def _json(self, response: httpx.Response) -> Any:
        try:
            return response.json()
        except ValueError as error:
            raise UnexpectedAnswer(self.url, response.status_code) from error
