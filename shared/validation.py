"""What pydantic finds wrong with a request, in our own words: one `FieldProblem` per fault.

The codes are part of the interfaces (docs/api.md lists them); a library's own text never reaches a client.
"""

import difflib
import enum
import types
import typing
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from shared.contracts import FieldProblem
from shared.errors import InvalidRequest

MAX_FIELD_PROBLEMS = 20
MAX_NAME_CHARS = 64  # a client's own field name, repeated to it

_TYPES = {
    "string": "a string",
    "int": "an integer",
    "float": "a number",
    "bool": "true or false",
    "list": "an array",
    "enum": "a string",
    "model": "an object",
    "dict": "an object",
}
_BOUNDS = {
    "greater_than_equal": ("ge", "must be at least"),
    "less_than_equal": ("le", "must be at most"),
    "greater_than": ("gt", "must be greater than"),
    "less_than": ("lt", "must be less than"),
}
# Our own validators raise ValueError with a sentence of ours; the field tells which rule it was.
_VALIDATOR_CODES = {
    "size": "not_a_size",
    "after": "not_a_cursor",
    "url": "not_a_url",
    **dict.fromkeys(("instruction", "negative_prompt", "prompt", "question", "answer"), "not_text"),
    "": "contradiction",
}


def validation_problem(error: ValidationError, model: type[BaseModel]) -> InvalidRequest:
    """Return pydantic's verdict on a `model` in our own words."""
    problems = field_problems(error.errors(include_url=False), model)
    names = ", ".join(sorted({problem.field or "the body" for problem in problems}))
    return InvalidRequest(f"The request was not accepted because of: {names}.", errors=problems)


def field_problems(errors: Sequence[ErrorDetails], model: type[BaseModel] | None) -> list[FieldProblem]:
    """Return one problem per fault, at most `MAX_FIELD_PROBLEMS`."""
    return [_field_problem(error, model) for error in errors[:MAX_FIELD_PROBLEMS]]


def _field_problem(error: ErrorDetails, model: type[BaseModel] | None) -> FieldProblem:
    path = [str(part)[:MAX_NAME_CHARS] for part in error["loc"]]
    field = ".".join(path)
    code, message = _verdict(error, field, model)
    return FieldProblem(field=field, code=code, message=message)


def _verdict(error: ErrorDetails, field: str, model: type[BaseModel] | None) -> tuple[str, str]:
    kind, context = error["type"], error.get("ctx", {})
    if kind in _BOUNDS:
        bound, words = _BOUNDS[kind]
        return "out_of_range", f"{words} {context[bound]}"
    match kind:
        case "extra_forbidden":
            near = difflib.get_close_matches(field, model.model_fields if model else (), n=1)
            hint = f"; did you mean `{near[0]}`?" if near else ""
            return "unknown_field", f"is not a field of this request{hint}"
        case "missing":
            return "missing", "is required"
        case "string_too_long":
            return "too_long", f"must have at most {context['max_length']} characters"
        case "string_too_short":
            return "too_short", f"must have at least {context['min_length']} characters"
        case "too_long":
            return "too_long", f"must have at most {context['max_length']} items"
        case "finite_number":
            return "not_finite", "must be a finite number"
        case "enum" if isinstance(error["input"], str):
            return "not_offered", f"must be one of {', '.join(_choices(field, model))}"
        case "value_error":
            return _VALIDATOR_CODES.get(field.rpartition(".")[2], "not_valid"), str(context["error"])
    expected = _TYPES.get(kind.partition("_")[0])
    if expected is not None:
        return "wrong_type", f"must be {expected}"
    return "not_valid", "is not valid here"


def _choices(field: str, model: type[BaseModel] | None) -> list[str]:
    info = model.model_fields.get(field) if model else None
    return [str(member.value) for member in _enum_members(info.annotation if info else None)]


def _enum_members(annotation: Any) -> list[enum.Enum]:
    if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        return list(annotation)
    if typing.get_origin(annotation) in {typing.Union, types.UnionType}:
        return [member for part in typing.get_args(annotation) for member in _enum_members(part)]
    return []
