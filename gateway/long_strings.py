"""Long strings are lifted out of a JSON text before it is parsed, and put back when it is written.

A picture in base64 is one string of megabytes, and Python's parser and writer go through it character by character,
in one piece: for a tenth of a second nobody else would be served, in whatever thread that is. Only strings that stand
for themselves are lifted: printable ASCII without escapes.

What is left is bounded in length and in values before a parser sees it, for the same reason: a list of millions of
zeros becomes millions of faults, each described with care.
"""

import json
import secrets
from dataclasses import dataclass, field

from shared.errors import BodyTooLarge, MalformedJSON

LONG_BYTES = 65_536
MAX_TEXT_BYTES = 2 * 1_048_576  # beside long strings: several times the context of any language model
MAX_VALUES = 16_384  # of all kinds; the longest chat that is taken has some thousands
_PIECE_BYTES = 1_048_576  # looked at in about a millisecond
_PLAIN = bytes(byte for byte in range(0x20, 0x7F) if byte not in b'"\\')


@dataclass(frozen=True, slots=True)
class Lifted:
    """A JSON text without its long strings; `strings` holds them by the names that stand for them, in their order."""

    text: bytes
    strings: dict[bytes, bytes] = field(default_factory=dict)

    def put_back(self, text: bytes) -> bytes:
        """Return a JSON text with the long strings in the place of their names."""
        places = sorted((text.index(name), name) for name in self.strings)
        parts, position = [], 0
        for place, name in places:
            parts += [text[position:place], self.strings[name]]
            position = place + len(name)
        return b"".join([*parts, text[position:]])

    def column(self, error: json.JSONDecodeError) -> int:
        """Return the column of an error in the text as it was sent."""
        line = self.text[: error.pos].rpartition(b"\n")[2]
        missing = [len(string) - len(name) for name, string in self.strings.items() if name in line]
        return error.colno + sum(missing)


def lift(text: bytes) -> Lifted:
    """Take the long strings out of a JSON text; one that is not JSON stays not JSON.

    Raises:
        BodyTooLarge: what is left is too long.
        MalformedJSON: it has too many values.
    """
    prefix = secrets.token_hex(16).encode()  # nobody can have written it
    parts: list[bytes] = []
    strings: dict[bytes, bytes] = {}
    values = position = after = 0
    start = text.find(b'"')
    while start >= 0:
        end = _end(text, start)
        if end < 0:
            break
        values = _counted(text, after, start, values + 1)
        if end - start > LONG_BYTES and _is_plain(text, start + 1, end):
            name = b"%s-%d-" % (prefix, len(strings))
            parts += [text[position : start + 1], name]
            strings[name] = text[start + 1 : end]
            position = end
        after = end + 1
        start = text.find(b'"', after)
    _counted(text, after, len(text), values)
    rest = b"".join([*parts, text[position:]])
    if len(rest) > MAX_TEXT_BYTES:
        raise BodyTooLarge(f"The body has more than {MAX_TEXT_BYTES:,} bytes beside its pictures.")
    return Lifted(rest, strings)


def _counted(text: bytes, start: int, end: int, values: int) -> int:
    """Return the number of values with those between two strings, each of which follows a comma."""
    for piece in range(start, end, _PIECE_BYTES):
        values += text.count(b",", piece, min(piece + _PIECE_BYTES, end))
        if values > MAX_VALUES:
            break
    if values > MAX_VALUES:
        raise MalformedJSON(f"The body has more than {MAX_VALUES:,} values.")
    return values


def _end(text: bytes, start: int) -> int:
    """Return where the string that begins at `start` ends; -1 if it does not."""
    piece = start + 1
    end = text.find(b'"', piece)
    while end >= 0:
        before = text[piece:end]
        if (len(before) - len(before.rstrip(b"\\"))) % 2 == 0:  # behind an odd number it is one of the string
            return end
        piece = end + 1
        end = text.find(b'"', piece)
    return -1


def _is_plain(text: bytes, start: int, end: int) -> bool:
    pieces = range(start, end, _PIECE_BYTES)
    return all(not text[piece : min(piece + _PIECE_BYTES, end)].translate(None, _PLAIN) for piece in pieces)
