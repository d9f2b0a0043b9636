import re
from collections.abc import Iterator

import pytest

from shared import errors
from shared.contracts import FieldProblem, Problem
from shared.errors import CapacityError, LLMGAError, ModelNotServed


def tree(root: type[LLMGAError] = LLMGAError) -> Iterator[type[LLMGAError]]:
    yield root
    for child in root.__subclasses__():
        if child.__module__ == errors.__name__:
            yield from tree(child)


ALL = list(tree())
LEAVES = [kind for kind in ALL if not any(child in ALL for child in kind.__subclasses__())]


def example(kind: type[LLMGAError], detail: str = "What happened.") -> LLMGAError:
    if issubclass(kind, CapacityError):
        return kind(detail, retry_after_s=3)
    if issubclass(kind, ModelNotServed):
        return kind(detail, served_models=["sd15", "xl"])
    return kind(detail)


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    drawing = re.findall(r"[A-Z][A-Za-z]+", errors.__doc__ or "")
    assert {kind.__name__ for kind in ALL} <= set(drawing)


@pytest.mark.parametrize("kind", LEAVES, ids=lambda kind: kind.__name__)
def test_every_kind_says_what_it_is_and_what_to_do(kind: type[LLMGAError]) -> None:
    assert re.fullmatch(r"[a-z][a-z_]+", kind.code)
    assert 400 <= kind.status <= 599
    assert kind.title[0].isupper()
    assert not kind.title.endswith(".")
    assert kind.next_step.endswith(".")


def test_no_two_kinds_share_a_code() -> None:
    codes = [kind.code for kind in LEAVES if kind is not errors.InvalidRequest]
    assert len(codes) == len(set(codes))
    assert errors.InvalidRequest.code == errors.RequestError.code  # the general case is the field errors' case


@pytest.mark.parametrize("kind", [kind for kind in ALL if issubclass(kind, errors.RequestError)])
def test_errors_of_the_request_are_4xx(kind: type[LLMGAError]) -> None:
    assert 400 <= kind.status < 500


@pytest.mark.parametrize(
    "kind", [kind for kind in LEAVES if issubclass(kind, CapacityError)], ids=lambda kind: kind.__name__
)
def test_capacity_errors_say_when_to_come_back(kind: type[CapacityError]) -> None:
    assert kind.status in {429, 503}
    assert kind("Full.", retry_after_s=7).retry_after_s == 7


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
def test_a_problem_survives_the_wire(kind: type[LLMGAError]) -> None:
    problem = example(kind).to_problem("/v1/jobs/job_1")
    assert Problem.model_validate_json(problem.model_dump_json()) == problem
    assert problem.type == f"urn:llmga:problem:{kind.code}"
    assert (problem.status, problem.title, problem.code) == (kind.status, kind.title, kind.code)
    assert problem.detail == "What happened."
    assert problem.instance == "/v1/jobs/job_1"


def test_a_model_that_is_not_served_comes_with_those_that_are() -> None:
    assert example(ModelNotServed).to_problem().served_models == ["sd15", "xl"]


def test_field_errors_and_an_own_next_step_are_passed_on() -> None:
    field = FieldProblem(field="size", code="not_a_multiple", message="Both sides must be multiples of 8.")
    problem = errors.InvalidRequest("One field is wrong.", next_step="Use 512x512.", errors=[field]).to_problem()
    assert problem.errors == [field]
    assert problem.next_step == "Use 512x512."


def test_the_text_of_an_error_is_its_detail() -> None:
    assert str(example(errors.NotFound, "No such job.")) == "No such job."
