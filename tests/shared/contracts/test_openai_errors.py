"""Problems in OpenAI's terms."""

import pytest

from shared.contracts import FieldProblem, OpenAIErrorEnvelope, openai_status
from shared.errors import (
    BodyTooLarge,
    IdempotencyConflict,
    InternalError,
    InvalidImage,
    InvalidRequest,
    LLMGAError,
    ModelNotServed,
    NoWorker,
    PromptTooLong,
    QueueFull,
    Unauthenticated,
)


@pytest.mark.parametrize(
    ("error", "status", "kind", "code"),
    [
        (InvalidRequest("It is wrong."), 400, "invalid_request_error", "invalid_request"),
        (InvalidImage("It is wrong."), 400, "invalid_request_error", "invalid_image"),
        (PromptTooLong("It is wrong."), 400, "invalid_request_error", "prompt_too_long"),
        (Unauthenticated("Who?"), 401, "authentication_error", "unauthenticated"),
        (ModelNotServed("None.", served_models=["a"]), 404, "invalid_request_error", "model_not_found"),
        (BodyTooLarge("Large."), 413, "invalid_request_error", "body_too_large"),
        (IdempotencyConflict("Twice."), 422, "invalid_request_error", "idempotency_conflict"),
        (QueueFull("Full.", retry_after_s=1), 429, "rate_limit_error", "queue_full"),
        (InternalError("Oh."), 500, "server_error", "internal_error"),
        (NoWorker("None.", retry_after_s=1), 503, "server_error", "no_worker"),
    ],
)
def test_problem_has_openai_s_status_type_and_code(error: LLMGAError, status: int, kind: str, code: str) -> None:
    problem = error.to_problem()
    told = OpenAIErrorEnvelope.of(problem).error
    assert (openai_status(problem), told.type, told.code, told.param) == (status, kind, code, None)
    assert told.message.startswith(error.detail)


def test_first_field_at_fault_is_named() -> None:
    faults = [FieldProblem(field="n", code="out_of_range", message="must be at most 8")]
    told = OpenAIErrorEnvelope.of(InvalidRequest("It is wrong.", errors=faults).to_problem()).error
    assert (told.param, told.message) == ("n", "It is wrong. n: must be at most 8.")
    whole = [FieldProblem(field="", code="contradiction", message="they exclude each other")]
    told = OpenAIErrorEnvelope.of(InvalidRequest("It is wrong.", errors=whole).to_problem()).error
    assert (told.param, told.message) == (None, "It is wrong. body: they exclude each other.")


def test_models_that_are_served_are_in_the_message() -> None:
    told = OpenAIErrorEnvelope.of(ModelNotServed("None.", served_models=["a", "b"]).to_problem()).error
    assert told.message.endswith("Served are: a, b.")
