"""Forms are read within bounds on everything that a sender can multiply."""

from typing import Any

import httpx
import pytest
from pydantic import BaseModel
from starlette.requests import Request

from gateway.openai.multipart import MAX_FIELD_BYTES, MAX_PARTS, Form, form_model, read_form
from shared.errors import InvalidRequest, MalformedMultipart, UnsupportedMediaType


class Fields(BaseModel):
    prompt: str
    seed: int | None = None
    stream: bool | None = None
    interval: tuple[float, float] | None = None


async def read(body: bytes, content_type: str) -> Form:
    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    return await read_form(Request({"type": "http", "headers": [(b"content-type", content_type.encode())]}, receive))


async def form_of(**content: Any) -> Form:
    """Return the form that httpx sends."""
    request = httpx.Request("POST", "http://x/", **content)
    return await read(request.read(), request.headers["content-type"])


def part(disposition: str, data: bytes = b"x", more: str = "") -> bytes:
    return f"--b\r\nContent-Disposition: {disposition}\r\n{more}\r\n".encode() + data + b"\r\n"


END = b"--b--\r\n"
FORM = "multipart/form-data; boundary=b"


async def test_fields_and_files_are_told_apart() -> None:
    form = await form_of(data={"prompt": "a café"}, files=[("image[]", ("a.png", b"\x00\r\n--\xff", "image/png"))])
    assert form.fields == {"prompt": "a café"}
    assert form.files == {"image": [b"\x00\r\n--\xff"]}


async def test_numbers_and_the_like_are_read_as_json_and_texts_are_not() -> None:
    data = {"prompt": "7", "seed": "7", "stream": "true", "interval": "[0.0, 0.5]"}
    form = await form_of(data=data, files={"image": b"x"})
    assert form_model(form, Fields, files=("image",)) == Fields(prompt="7", seed=7, stream=True, interval=(0.0, 0.5))
    with pytest.raises(InvalidRequest) as refused:
        form_model(await form_of(data=data | {"seed": "seven"}, files={"x": b""}), Fields, files=("x",))
    assert [(one.field, one.code) for one in refused.value.errors] == [("seed", "wrong_type")]


async def test_file_that_nobody_asked_for_is_refused_by_name() -> None:
    form = await form_of(data={"prompt": "a"}, files={"markup": b"x"})
    with pytest.raises(InvalidRequest) as refused:
        form_model(form, Fields, files=("image",))
    assert [one.field for one in refused.value.errors] == ["markup"]


async def test_digest_is_of_the_content_and_not_of_the_boundary() -> None:
    forms = [await form_of(data={"prompt": "a"}, files={"image": data}) for data in (b"x", b"x", b"y")]
    assert forms[0].digest == forms[1].digest != forms[2].digest


@pytest.mark.parametrize("content_type", ["", "application/json", "multipart/form-data", "multipart/mixed; boundary=b"])
async def test_body_that_is_not_declared_as_a_form_is_refused(content_type: str) -> None:
    with pytest.raises(UnsupportedMediaType):
        await read(part('form-data; name="a"') + END, content_type)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "ends before its last boundary"),
        (b"hello", "could not be read"),
        (part('form-data; name="a"'), "ends before its last boundary"),
        (part('form-data; name="a"')[:-9], "ends before its last boundary"),
        (part("form-data") + END, "has no name"),
        (part('attachment; name="a"') + END, "has no name"),
        (part(f'form-data; name="{"a" * 200}"') + END, "has no name"),
        (part('form-data; name="a"') * 2 + END, "names the field `a` twice"),
        (part('form-data; name="a"', b"\xff") + END, "not UTF-8"),
        (part('form-data; name="a"', b"x" * (MAX_FIELD_BYTES + 1)) + END, f"more than {MAX_FIELD_BYTES} bytes"),
        (b"".join(part(f'form-data; name="a{i}"') for i in range(MAX_PARTS + 1)) + END, f"more than {MAX_PARTS} parts"),
        (part('form-data; name="a"', more="X: y\r\n" * 20) + END, "could not be read"),
        (part('form-data; name="a"', more=f"X: {'y' * 5_000}\r\n") + END, "could not be read"),
    ],
)
async def test_form_out_of_bounds_is_malformed(body: bytes, words: str) -> None:
    with pytest.raises(MalformedMultipart, match=words):
        await read(body, FORM)
