"""Files in JSON strings."""

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import InvalidImage
from shared.media import ImageLimits, inline_bytes

DATA = bytes(range(256)) + b"\xfb\xff"  # with both signs of the alphabet in it
TEXT = base64.b64encode(DATA).decode()


@pytest.mark.parametrize(
    "text",
    [
        TEXT,
        base64.encodebytes(DATA).decode(),
        f"data:image/png;base64,{TEXT}",
        f"DATA:image/svg+xml;BASE64,{TEXT}",
        f" {TEXT}\r\n",
    ],
    ids=["bare", "with line breaks", "data URI", "capitals", "white space around"],
)
def test_the_bytes_come_back(text: str) -> None:
    assert inline_bytes(text) == DATA


@pytest.mark.parametrize(
    "text",
    [
        "a",
        TEXT[:-1],
        TEXT[:4] + "====" + TEXT[4:],
        TEXT.replace("+", "-").replace("/", "_"),
        "é",
        "AAA\x00",
        "data:image/png,%89PNG",
        f"data:text/html;base64,{TEXT}",
        f"data:image/png;base64;{TEXT}",
        "http://example.org/a.png",
        "file:///etc/passwd",
        "s3://bucket/a.png",
    ],
)
def test_what_is_neither_form_is_refused_with_what_to_send(text: str) -> None:
    with pytest.raises(InvalidImage) as caught:
        inline_bytes(text)
    assert caught.value.to_problem().next_step != InvalidImage.next_step


def test_addresses_are_told_from_bad_base64() -> None:
    with pytest.raises(InvalidImage, match="not fetched"):
        inline_bytes("https://example.org/a.png")


def test_no_more_is_decoded_than_the_limit() -> None:
    limits = ImageLimits(max_bytes=len(DATA))
    assert inline_bytes(TEXT, limits) == DATA
    with pytest.raises(InvalidImage, match="more than"):
        inline_bytes(base64.b64encode(DATA + bytes(4)).decode(), limits)


@given(st.text(max_size=60))
def test_any_text_gives_bytes_or_our_error(text: str) -> None:
    try:
        inline_bytes(text)
    except InvalidImage:
        return
    # Taken: then it is base64 through and through.
    base64.b64decode("".join(text.partition("base64,")[2].split() or text.split()), validate=True)
