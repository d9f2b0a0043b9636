"""Strict JSON: arbitrary bytes give a value or a problem, never anything else."""

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.json_body import MAX_DEPTH, parse
from shared.errors import MalformedJSON

_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**300), 10**300) | st.text(),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(), children, max_size=4),
    max_leaves=16,
)


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_a_value_or_malformed(body: bytes) -> None:
    with suppress(MalformedJSON):
        parse(body)


@given(_VALUES)
def test_what_is_json_is_read_as_it_was_written(value: Any) -> None:
    assert parse(json.dumps(value).encode()) == value


def test_whole_numbers_are_integers_however_they_are_written() -> None:
    value = parse(b"[3.0, 3e0, -0.0, 2.5, 1e300, 9007199254740993.0]")
    assert [type(number) for number in value] == [int, int, int, float, float, float]


@pytest.mark.parametrize(("levels", "is_fine"), [(MAX_DEPTH, True), (MAX_DEPTH + 1, False)])
@pytest.mark.parametrize(("left", "right"), [(b"[", b"]"), (b'{"a":', b"}")])
def test_depth_is_bounded(levels: int, is_fine: bool, left: bytes, right: bytes) -> None:
    body = left * levels + b"1" + right * levels
    if is_fine:
        parse(body)
    else:
        with pytest.raises(MalformedJSON):
            parse(body)
