"""Problems in the envelope that OpenAI's clients read: `{"error": {"message", "type", "param", "code"}}`."""

from typing import Self

from pydantic import BaseModel, ConfigDict

from shared.contracts.problem import OpenAIError, Problem

_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
# Where OpenAI has a name of its own for what we call otherwise.
_CODES = {"model_not_served": "model_not_found"}
# With OpenAI a fault of a request's fields is 400, and a model that is not there is like any other thing that is not.
_STATUSES = {"invalid_request": 400, "invalid_image": 400, "prompt_too_long": 400, "model_not_served": 404}


class OpenAIErrorEnvelope(BaseModel):
    """The body of an answer that says an error."""

    model_config = ConfigDict(extra="forbid")

    error: OpenAIError

    @classmethod
    def of(cls, problem: Problem) -> Self:
        """Return the problem in its envelope."""
        return cls(error=openai_error(problem))


def openai_error(problem: Problem) -> OpenAIError:
    """Return the problem in OpenAI's terms."""
    field = problem.errors[0] if problem.errors else None
    message = f"{problem.detail} {problem.next_step}"
    if field is not None:
        message = f"{problem.detail} {field.field or 'body'}: {field.message}."
    if problem.served_models:
        message += f" Served are: {', '.join(problem.served_models)}."
    status = openai_status(problem)
    return OpenAIError(
        message=message,
        type=_TYPES.get(status, "invalid_request_error" if status < 500 else "server_error"),
        param=(field.field or None) if field else None,
        code=_CODES.get(problem.code, problem.code),
    )


def openai_status(problem: Problem) -> int:
    """Return the HTTP status with which OpenAI answers such a problem."""
    return _STATUSES.get(problem.code, problem.status)
