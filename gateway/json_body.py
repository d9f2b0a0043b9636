"""Request bodies: strict JSON in, models out.

Stricter than Python's parser, because what is ambiguous here is a surprise later: no NaN or infinities (RFC 8259
§6), no member twice in an object (§4), no unpaired surrogates, no nesting without bound, and no numbers in strings.
A number like `3.0` is the integer 3, as JSON Schema has it.
"""

import asyncio
import hashlib
import json
from typing import Any, NoReturn, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import Request

from gateway.long_strings import Lifted, lift
from shared.contracts import FieldProblem
from shared.errors import InvalidRequest, MalformedJSON, UnsupportedMediaType
from shared.validation import validation_problem

MAX_DEPTH = 32  # our deepest request has two levels
THREAD_FROM_BYTES = 65_536  # a body with a picture in it takes a tenth of a second, in which others are served
MAX_DIGITS = 4_300  # as Python bounds those of integers
_EXACT_BELOW = 2.0**53

Model = TypeVar("Model", bound=BaseModel)


class _TwiceError(ValueError):
    pass


class _ConstantError(ValueError):
    pass


async def read_model(request: Request, model: type[Model]) -> tuple[Model, str]:
    """Return the body as a `model`, and the SHA-256 of its canonical JSON as the client sent it.

    Raises:
        UnsupportedMediaType: the body is not declared as JSON.
        MalformedJSON: it is not JSON, nested too deeply, or has too many values.
        BodyTooLarge: it is too long, pictures apart.
        InvalidRequest: a field is missing, unknown, of the wrong type or out of bounds.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise UnsupportedMediaType("The body must be JSON and be declared as such.")
    # Not `request.body()`, which would keep it for as long as the answer lasts.
    body = b"".join([chunk async for chunk in request.stream()])
    if len(body) < THREAD_FROM_BYTES:
        return _model_of(body, model)
    return await asyncio.to_thread(_model_of, body, model)


def _model_of(body: bytes, model: type[Model]) -> tuple[Model, str]:
    lifted = lift(body)
    value = _parsed(lifted)
    if not isinstance(value, dict):
        problem = FieldProblem(field="", code="wrong_type", message="must be a JSON object")
        raise InvalidRequest("The body is JSON, but not an object.", errors=[problem])
    canonical = lifted.put_back(_canonical(value))
    try:
        return model.model_validate_json(canonical, strict=True), hashlib.sha256(canonical).hexdigest()
    except ValidationError as error:
        raise validation_problem(error, model) from None


def parse(body: bytes) -> Any:
    """Return the value of a JSON text.

    Raises:
        MalformedJSON: it is not one, or has too many values.
        BodyTooLarge: it is too long, pictures apart.
    """
    lift(body)  # for its bounds
    return _parsed(Lifted(body))


def _parsed(lifted: Lifted) -> Any:
    try:
        value = json.loads(
            lifted.text.decode("utf-8"),
            object_pairs_hook=_object,
            parse_float=_number,
            parse_constant=_refuse_constant,
        )
    except UnicodeDecodeError:
        raise MalformedJSON("The body is not UTF-8.") from None
    except _TwiceError:
        raise MalformedJSON("An object of the body names a member twice.") from None
    except _ConstantError:
        raise MalformedJSON("NaN and infinities are not JSON numbers.") from None
    except json.JSONDecodeError as error:
        column = lifted.column(error)
        raise MalformedJSON(f"The body stops being JSON at line {error.lineno}, column {column}.") from None
    except ValueError:
        raise MalformedJSON("A number of the body has too many digits.") from None
    except RecursionError:
        raise _too_deep() from None
    if _is_deeper(value, MAX_DEPTH):
        raise _too_deep()
    return value


def _too_deep() -> MalformedJSON:
    return MalformedJSON(f"The body is nested more than {MAX_DEPTH} levels deep.")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise _TwiceError
    return value


def _number(digits: str) -> float | int:
    if len(digits) > MAX_DIGITS:
        raise ValueError("too many digits")
    number = float(digits)
    return int(number) if abs(number) < _EXACT_BELOW and number.is_integer() else number


def _refuse_constant(_: str) -> NoReturn:
    raise _ConstantError


def _is_deeper(value: Any, levels: int) -> bool:
    layer = [value]
    for _ in range(levels + 1):
        layer = [
            item
            for parent in layer
            if isinstance(parent, dict | list)
            for item in (parent.values() if isinstance(parent, dict) else parent)
        ]
        if not layer:
            return False
    return True


def _canonical(value: dict[str, Any]) -> bytes:
    """Return the value's one form: members sorted, no white space, UTF-8."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise MalformedJSON("A string of the body holds half of a surrogate pair.") from None
