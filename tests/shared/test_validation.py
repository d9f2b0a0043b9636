"""pydantic's verdicts in our own words."""

from enum import StrEnum
from typing import Annotated, Any

import pytest
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, Strict, ValidationError

from shared.contracts.generation import meaningful
from shared.validation import MAX_FIELD_PROBLEMS, MAX_NAME_CHARS, validation_problem


class Color(StrEnum):
    RED = "red"
    BLUE = "blue"


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid")

    answer: Annotated[str, AfterValidator(meaningful)]


class Whole(BaseModel):
    model_config = ConfigDict(extra="forbid")

    color: Color | None = None
    count: Annotated[int, Strict()] = Field(default=1, ge=1, lt=9)
    parts: list[Part] = Field(default_factory=list, max_length=2)


def faults(value: Any) -> list[tuple[str, str, str]]:
    with pytest.raises(ValidationError) as caught:
        Whole.model_validate(value)
    return [(fault.field, fault.code, fault.message) for fault in validation_problem(caught.value, Whole).errors]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"color": "green"}, ("color", "not_offered", "must be one of red, blue")),
        ({"color": 3}, ("color", "wrong_type", "must be a string")),
        ({"count": 9}, ("count", "out_of_range", "must be less than 9")),
        ({"count": "1"}, ("count", "wrong_type", "must be an integer")),
        ({"cuont": 1}, ("cuont", "unknown_field", "is not a field of this request; did you mean `count`?")),
        ({"parts": {}}, ("parts", "wrong_type", "must be an array")),
        ({"parts": [{"answer": "a"}] * 3}, ("parts", "too_long", "must have at most 2 items")),
        ({"parts": [{}]}, ("parts.0.answer", "missing", "is required")),
        ({"parts": [{"answer": " "}]}, ("parts.0.answer", "not_text", "must contain at least one visible character")),
        ([], ("", "wrong_type", "must be an object")),
    ],
)
def test_each_fault_has_its_place_a_code_and_a_sentence_of_ours(value: Any, expected: tuple[str, str, str]) -> None:
    assert faults(value) == [expected]


def test_what_a_client_wrote_is_repeated_within_bounds() -> None:
    found = faults({f"{number}" + "x" * 200: 1 for number in range(100)})
    assert len(found) == MAX_FIELD_PROBLEMS
    assert all(len(field) == MAX_NAME_CHARS for field, _, _ in found)
