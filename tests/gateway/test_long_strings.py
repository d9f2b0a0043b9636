"""What is lifted out of a text comes back in its place, and what is left is short."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.json_body import parse
from gateway.long_strings import LONG_BYTES, MAX_TEXT_BYTES, MAX_VALUES, lift
from shared.errors import BodyTooLarge, MalformedJSON

LONG = "A" * (LONG_BYTES + 1)
TEXTS = st.sampled_from([LONG, LONG + '"', LONG + "\\", LONG + "é", "\\" * 7 + '"', "", "a,b", 'say "a"'])
VALUES = st.recursive(
    TEXTS | st.integers() | st.none(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=50, deadline=None)
@given(VALUES)
def test_what_is_put_back_is_the_text(value: Any) -> None:
    text = json.dumps(value, ensure_ascii=False).encode()
    lifted = lift(text)
    assert lifted.put_back(lifted.text) == text
    assert lifted.put_back(json.dumps(json.loads(lifted.text), ensure_ascii=False).encode()) == text
    assert all(string == LONG.encode() for string in lifted.strings.values())
    assert len(lifted.strings) == text.count(b'"%s"' % LONG.encode())


def test_long_strings_are_not_parsed() -> None:
    lifted = lift(json.dumps({"image": LONG * 100, "n": 1}).encode())
    assert len(lifted.text) < 200
    assert json.loads(lifted.text)["n"] == 1


@pytest.mark.parametrize("text", [b'"', b'{"a', b'"\\"', b'{"a": "b\\', b'"a" "b"', b'{"a":1,}'])
def test_what_is_not_json_stays_so(text: bytes) -> None:
    padded = text + b' "' + LONG.encode() + b'"'
    lifted = lift(padded)
    assert lifted.put_back(lifted.text) == padded
    with pytest.raises(json.JSONDecodeError):
        json.loads(lifted.text)


def test_error_is_where_the_client_sees_it() -> None:
    text = b'{\n"image": "' + LONG.encode() + b'", oops}'
    lifted = lift(text)
    with pytest.raises(json.JSONDecodeError) as ours:
        json.loads(lifted.text)
    with pytest.raises(json.JSONDecodeError) as theirs:
        json.loads(text)
    assert (ours.value.lineno, lifted.column(ours.value)) == (theirs.value.lineno, theirs.value.colno)


@pytest.mark.parametrize(
    "text",
    [b"[" + b"0," * (MAX_VALUES + 1) + b"0]", b"[" + b'"",' * MAX_VALUES + b'""]', b'""' * (MAX_VALUES + 2)],
    ids=["numbers", "strings", "strings alone"],
)
def test_too_many_values_are_refused_before_they_are_parsed(text: bytes) -> None:
    with pytest.raises(MalformedJSON, match="more than 16,384 values"):
        parse(text)


def test_text_that_is_long_without_long_strings_is_refused() -> None:
    with pytest.raises(BodyTooLarge, match="beside its pictures"):
        parse(b'"' + b"\\n" * (MAX_TEXT_BYTES // 2) + b'"')
