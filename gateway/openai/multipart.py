"""Bodies of `multipart/form-data` (RFC 7578), within bounds on everything that a sender can multiply.

The body is in memory already and no larger than the gateway's limit, so that nothing is written to disk; it is parsed
beside the event loop.
"""

import asyncio
import hashlib
import json
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from gateway.json_body import parse
from shared.contracts import FieldProblem
from shared.errors import InvalidRequest, MalformedJSON, MalformedMultipart, UnsupportedMediaType
from shared.validation import validation_problem

MEDIA_TYPE = "multipart/form-data"
MAX_PARTS = 64  # twice the fields that there are
MAX_HEADERS = 8  # of a part; clients send two
MAX_HEADER_BYTES = 1_024
MAX_NAME_CHARS = 128
TEXTS = frozenset({"prompt", "negative_prompt", "model", "user", "safety_identifier"})
MAX_FIELD_BYTES = 65_536  # a prompt of 8,000 characters, four bytes each, twice over

Model = TypeVar("Model", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Form:
    """A form's fields as text, and its files by the field that they came in; `digest` is a SHA-256 of all of it."""

    fields: dict[str, str]
    files: dict[str, list[bytes]]
    digest: str


@dataclass(slots=True)
class _Part:
    headers: dict[bytes, bytes] = field(default_factory=dict)
    header_name: bytearray = field(default_factory=bytearray)
    header_value: bytearray = field(default_factory=bytearray)
    name: str = ""
    is_file: bool = False
    data: bytearray = field(default_factory=bytearray)


async def read_form(request: Request) -> Form:
    """Return the body as a form.

    Raises:
        UnsupportedMediaType: the body is not declared as one.
        MalformedMultipart: it is none, or exceeds a bound.
    """
    media_type, options = parse_options_header(request.headers.get("content-type"))
    boundary = options.get(b"boundary")
    if media_type != MEDIA_TYPE.encode() or not boundary:
        raise UnsupportedMediaType(
            "The body must be a form.",
            next_step="Send `Content-Type: multipart/form-data` with a boundary, as OpenAI's clients do.",
        )
    body = b"".join([chunk async for chunk in request.stream()])
    return await asyncio.to_thread(_form_of, body, boundary)


def form_model(form: Form, model: type[Model], *, files: Collection[str]) -> Model:
    """Return a form's fields as a model. All but texts are read as JSON: `7`, `true`, `[0.0, 0.8]`.

    Raises:
        InvalidRequest: a field is missing, unknown, of the wrong type or out of bounds, or a file that is none of
            `files`.
    """
    strangers = sorted(form.files.keys() - set(files))
    if strangers:
        problems = [
            FieldProblem(field=name, code="unknown_field", message="is no file of this call") for name in strangers
        ]
        raise InvalidRequest(f"The request was not accepted because of: {', '.join(strangers)}.", errors=problems)
    values = {name: text if name in TEXTS else _value(text) for name, text in form.fields.items() if name not in files}
    try:
        return model.model_validate_json(json.dumps(values), strict=True)
    except ValidationError as error:
        raise validation_problem(error, model) from None


def _form_of(body: bytes, boundary: bytes) -> Form:
    reader = _Reader()
    try:
        parser = MultipartParser(
            boundary, reader.callbacks(), max_header_count=MAX_HEADERS, max_header_size=MAX_HEADER_BYTES
        )
        parser.write(body)
        parser.finalize()
    except FormParserError:
        raise MalformedMultipart(
            "The form could not be read: its parts are not put together as they must be."
        ) from None
    if not reader.is_complete:
        raise MalformedMultipart("The form ends before its last boundary.")
    return reader.form()


class _Reader:
    """Collects the parts, and stops the parser at the first bound that is exceeded."""

    def __init__(self) -> None:
        self._parts: list[_Part] = []
        self.is_complete = False

    def callbacks(self) -> Any:
        return {
            "on_part_begin": self._begin,
            "on_header_field": self._header_name,
            "on_header_value": self._header_value,
            "on_header_end": self._header_end,
            "on_headers_finished": self._name,
            "on_part_data": self._data,
            "on_end": self._end,
        }

    def form(self) -> Form:
        fields: dict[str, str] = {}
        files: dict[str, list[bytes]] = {}
        digest = hashlib.sha256()
        for part in self._parts:
            name = part.name.removesuffix("[]")  # as clients name the items of a list
            digest.update(f"{len(part.name)}:{part.name}{len(part.data)}:".encode())
            digest.update(part.data)
            if part.is_file:
                files.setdefault(name, []).append(bytes(part.data))
                continue
            if name in fields:
                raise MalformedMultipart(f"The form names the field `{name}` twice.")
            try:
                fields[name] = part.data.decode("utf-8")
            except UnicodeDecodeError:
                raise MalformedMultipart(f"The form's field `{name}` is not UTF-8.") from None
        return Form(fields, files, digest.hexdigest())

    def _begin(self) -> None:
        if len(self._parts) == MAX_PARTS:
            raise MalformedMultipart(f"The form has more than {MAX_PARTS} parts.")
        self._parts.append(_Part())

    def _header_name(self, data: bytes, start: int, end: int) -> None:
        self._parts[-1].header_name += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._parts[-1].header_value += data[start:end]

    def _header_end(self) -> None:
        part = self._parts[-1]
        part.headers[bytes(part.header_name).lower()] = bytes(part.header_value)
        part.header_name.clear()
        part.header_value.clear()

    def _name(self) -> None:
        part = self._parts[-1]
        kind, options = parse_options_header(part.headers.get(b"content-disposition"))
        name = options.get(b"name", b"").decode("utf-8", "replace")
        if kind != b"form-data" or not name or len(name) > MAX_NAME_CHARS:
            raise MalformedMultipart(
                f"A part of the form has no name, or one of more than {MAX_NAME_CHARS} characters."
            )
        part.name = name
        part.is_file = b"filename" in options

    def _data(self, data: bytes, start: int, end: int) -> None:
        part = self._parts[-1]
        if not part.is_file and len(part.data) + end - start > MAX_FIELD_BYTES:
            raise MalformedMultipart(f"The form's field `{part.name}` has more than {MAX_FIELD_BYTES} bytes.")
        part.data += data[start:end]

    def _end(self) -> None:
        self.is_complete = True


def _value(text: str) -> Any:
    """Return what a field's text stands for: itself, where it is not JSON."""
    try:
        value = parse(text.encode())
    except MalformedJSON:
        return text
    return text if isinstance(value, str) else value
