"""The error tree. A class is a kind of problem: stable `code`, HTTP `status`, `title` and what to do next.

LLMGAError
├── RequestError (4xx: the request is at fault; never counts against a worker or an attempt)
│   ├── Unauthenticated
│   ├── MalformedHTTP, HeadTooLarge
│   ├── MalformedJSON, MalformedMultipart, UnsupportedMediaType, BodyTooLarge, BodyTooSlow, InvalidRequest, InvalidImage
│   ├── NotFound, Gone, MethodNotAllowed
│   ├── IdempotencyConflict, NotAwaitingApproval
│   ├── TurnUnderWay, SessionFull, TooManySessions
│   └── ModelNotServed
├── CapacityError (429/503 with `retry_after_s`: try again later)
│   ├── LimitExceeded (429: a limit of this caller, not of the system)
│   │   └── RateLimited, TooManyJobs, QuotaExceeded
│   ├── QueueFull
│   ├── QueueUnavailable
│   ├── StoreUnavailable
│   ├── NoWorker
│   ├── Overloaded
│   └── Draining
├── JobError (why a job ended as failed)
│   ├── AttemptsExhausted, DeadlineExceeded
│   ├── PromptEmpty, PromptTooLong
│   └── RenderFailed, OutOfMemory, ModelUnavailable
├── TimedOut (504: it took longer than the call may wait)
└── InternalError (500)

A library's own text never becomes `detail`: whoever catches a library's exception writes the sentence.
"""

from typing import ClassVar

from shared.contracts import FieldProblem, Problem
from shared.contracts.limits import UNBOUNDED, Standing


class LLMGAError(Exception):
    """Base of all errors that may reach a client. `detail` says what happened; the class says the rest."""

    code: ClassVar[str] = "internal_error"
    status: ClassVar[int] = 500
    title: ClassVar[str] = "Internal error"
    next_step: ClassVar[str] = "Try again; if it stays, give the operator the request id."

    def __init__(self, detail: str, *, next_step: str | None = None, errors: list[FieldProblem] | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.errors = errors or []
        self._next_step = next_step

    def to_problem(self, instance: str | None = None) -> Problem:
        """Return the problem that a client sees (RFC 9457 §3.1)."""
        return Problem(
            type=f"urn:llmga:problem:{self.code}",
            title=self.title,
            status=self.status,
            code=self.code,
            detail=self.detail,
            next_step=self._next_step or self.next_step,
            instance=instance,
            errors=self.errors,
        )


class InternalError(LLMGAError):
    """Something of ours broke."""


class RequestError(LLMGAError):
    """The request is at fault."""

    code = "invalid_request"
    status = 422
    title = "Invalid request"
    next_step = "Correct the request and send it again."


class Unauthenticated(RequestError):
    """The caller did not say who it is, or not with a key that is good."""

    code = "unauthenticated"
    status = 401
    title = "Not authenticated"
    next_step = "Send `Authorization: Bearer` and an API key; the operator makes one with `llmga keys create`."


class InvalidRequest(RequestError):
    """A field is missing, unknown, of the wrong type or out of bounds; `errors` names each."""

    next_step = "Correct the fields named in `errors` and send the request again."


class MalformedHTTP(RequestError):
    """What came is no HTTP request."""

    code = "malformed_http"
    status = 400
    title = "Malformed request"
    next_step = "Send it with an HTTP client."


class HeadTooLarge(RequestError):
    """The request line and the headers are larger than the limit."""

    code = "head_too_large"
    status = 431
    title = "Headers too large"
    next_step = "Send shorter headers; what is long belongs into the body."


class MalformedJSON(RequestError):
    """The body is not JSON."""

    code = "malformed_json"
    status = 400
    title = "Malformed JSON"
    next_step = "Send a JSON object, encoded as UTF-8."


class MalformedMultipart(RequestError):
    """The body is no `multipart/form-data`, or one with too much in it."""

    code = "malformed_multipart"
    status = 400
    title = "Malformed form"
    next_step = "Send the pictures and fields as a form (RFC 7578), each field once."


class UnsupportedMediaType(RequestError):
    """The body's media type is not taken here."""

    code = "unsupported_media_type"
    status = 415
    title = "Unsupported media type"
    next_step = "Send `Content-Type: application/json`."


class BodyTooLarge(RequestError):
    """The body is larger than the limit."""

    code = "body_too_large"
    status = 413
    title = "Body too large"
    next_step = "Send a smaller body."


class BodyTooSlow(RequestError):
    """The body did not come in the time that bodies have."""

    code = "body_too_slow"
    status = 408
    title = "Body too slow"
    next_step = "Send the request again; what is large, over a connection that carries 16 KiB/s at least."


class InvalidImage(RequestError):
    """The bytes are not a picture that is accepted here."""

    code = "invalid_image"
    title = "Invalid image"
    next_step = "Send a PNG, JPEG or WebP file within the stated limits."


class NotFound(RequestError):
    """There is nothing of that name for this caller."""

    code = "not_found"
    status = 404
    title = "Not found"
    next_step = "Check the id and the path; results are kept for a limited time."


class Gone(RequestError):
    """It existed, and its time is over."""

    code = "gone"
    status = 410
    title = "Gone"
    next_step = "Submit the request again."


class MethodNotAllowed(RequestError):
    """The path exists, the method does not."""

    code = "method_not_allowed"
    status = 405
    title = "Method not allowed"
    next_step = "Use one of the methods in the `Allow` header."


class IdempotencyConflict(RequestError):
    """The same idempotency key came with another body."""

    code = "idempotency_conflict"
    title = "Idempotency key reused"
    next_step = "Use a new `Idempotency-Key` for a new request."


class NotAwaitingApproval(RequestError):
    """The job is not held for approval."""

    code = "not_awaiting_approval"
    status = 409
    title = "Not awaiting approval"
    next_step = "Look at the job's `status`."


class TurnUnderWay(RequestError):
    """The turn that is to be gone on from has not ended."""

    code = "turn_under_way"
    status = 409
    title = "Turn under way"
    next_step = "Wait until that turn's job has ended, or name another `parent`."


class SessionFull(RequestError):
    """The session is at one of its bounds."""

    code = "session_full"
    status = 409
    title = "Session full"
    next_step = "Go on in a new session: send the picture there as `image`, by its id."


class TooManySessions(RequestError):
    """The tenant has as many sessions as it may have."""

    code = "too_many_sessions"
    status = 409
    title = "Too many sessions"
    next_step = "Delete a session that you no longer need, or wait until one has expired."


class ModelNotServed(RequestError):
    """No worker serves the model that was asked for."""

    code = "model_not_served"
    title = "Model not served"
    next_step = "Choose one of `served_models`, or leave `model` out."

    def __init__(self, detail: str, *, served_models: list[str]) -> None:
        super().__init__(detail)
        self.served_models = served_models

    def to_problem(self, instance: str | None = None) -> Problem:
        """Return the problem with the list of the models that are served."""
        return super().to_problem(instance).model_copy(update={"served_models": self.served_models})


class CapacityError(LLMGAError):
    """Not now: `retry_after_s` says when to try again."""

    def __init__(self, detail: str, *, retry_after_s: int) -> None:
        super().__init__(detail)
        self.retry_after_s = retry_after_s


class LimitExceeded(CapacityError):
    """A limit of the caller is reached; `standing` says what is left of each."""

    status = 429

    def __init__(self, detail: str, *, retry_after_s: int, standing: Standing = UNBOUNDED) -> None:
        super().__init__(detail, retry_after_s=retry_after_s)
        self.standing = standing


class RateLimited(LimitExceeded):
    """Requests came faster than the caller may send them."""

    code = "rate_limited"
    title = "Too many requests"
    next_step = "Wait for the seconds in `Retry-After`; `RateLimit` says what is left before it comes to this."


class TooManyJobs(LimitExceeded):
    """As many of the caller's jobs are under way as it may have."""

    code = "too_many_jobs"
    title = "Too many jobs"
    next_step = "Wait until one of your jobs has ended, or cancel one, then send the request again."


class QuotaExceeded(LimitExceeded):
    """The caller's cost units of this day do not cover the job."""

    code = "quota_exceeded"
    title = "Daily quota used up"
    next_step = "Ask for less (fewer pictures or steps, a smaller size), or wait for the seconds in `Retry-After`."


class QueueFull(CapacityError):
    """The queue is at its bound."""

    code = "queue_full"
    status = 429
    title = "Queue full"
    next_step = "Wait for the seconds in `Retry-After`, then send the request again."


class QueueUnavailable(CapacityError):
    """The queue's server cannot be reached, or takes no more data."""

    code = "queue_unavailable"
    status = 503
    title = "Queue unavailable"
    next_step = "Send the request again with the same `Idempotency-Key` after the seconds in `Retry-After`."


class StoreUnavailable(CapacityError):
    """The artifact store cannot be written: full, read-only or gone."""

    code = "store_unavailable"
    status = 503
    title = "Artifact store unavailable"
    next_step = "Send the request again after the seconds in `Retry-After`; if it stays, tell the operator."


class NoWorker(CapacityError):
    """No worker of a needed stage is there."""

    code = "no_worker"
    status = 503
    title = "No worker"
    next_step = "Wait for the seconds in `Retry-After`; `/readyz` says what is missing."


class Overloaded(CapacityError):
    """This process has as much in hand as it can hold."""

    code = "overloaded"
    status = 503
    title = "Server busy"
    next_step = "Send the request again after the seconds in `Retry-After`."


class Draining(CapacityError):
    """This process is about to end; another one goes on."""

    code = "draining"
    status = 503
    title = "Restarting"
    next_step = "Send the request again after the seconds in `Retry-After`."


class TimedOut(LLMGAError):
    """The answer was not there when the call's time was over."""

    code = "timed_out"
    status = 504
    title = "Timed out"
    next_step = "Ask for less, or submit to `/v1/generations` and follow the job."


class JobError(LLMGAError):
    """Why a job failed."""

    code = "job_failed"
    title = "Job failed"
    next_step = "Submit the request again."


class AttemptsExhausted(JobError):
    """The job was started as often as allowed and its worker was lost each time."""

    code = "attempts_exhausted"
    title = "Attempts exhausted"
    next_step = "The job is kept as a dead letter: the operator can find the cause and replay it."


class DeadlineExceeded(JobError):
    """The job's deadline passed before it was started."""

    code = "deadline_exceeded"
    status = 504
    title = "Deadline exceeded"
    next_step = "Submit it again with a later `deadline_s`, or when the queue is shorter."


class PromptEmpty(JobError):
    """The language model's answer held no usable prompt."""

    code = "prompt_empty"
    title = "No prompt was written"
    next_step = "Say more of what you want, or use `prompt_mode: verbatim`."


class PromptTooLong(JobError):
    """The instruction does not fit the language model's context."""

    code = "prompt_too_long"
    status = 422
    title = "Instruction too long"
    next_step = "Shorten the instruction."


class RenderFailed(JobError):
    """The diffusion service could not finish the picture."""

    code = "render_failed"
    title = "Rendering failed"


class OutOfMemory(JobError):
    """The picture does not fit the device's memory."""

    code = "out_of_memory"
    title = "Out of memory"
    next_step = "Ask for a smaller size or fewer pictures."


class ModelUnavailable(JobError):
    """The worker has the model's name in its settings, and could not load it."""

    code = "model_unavailable"
    title = "Model unavailable"
    next_step = "Choose another model; tell the operator, whose log says what is wrong with this one."
