"""Bodies that no client sends by mistake, each with the statuses that may answer it."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field

from gateway import examples
from tests.gateway.pictures import file_of, pixels_of

GENERATIONS = "/v1/generations"
JSON = "application/json"
BOUNDARY = "edge"
FORM = f"multipart/form-data; boundary={BOUNDARY}"
REFUSED = frozenset({400, 413, 415, 422})
EDITS = "/v1/images/edits"


_STRANGE: tuple[object, ...] = ({"$ref": "#"}, [[[]]], -1, 1e300, "\u0000")


@dataclass(frozen=True, slots=True)
class Body:
    """What is sent where, and what may come back."""

    name: str
    data: bytes
    path: str = GENERATIONS
    media_type: str | None = JSON
    statuses: frozenset[int] = REFUSED
    headers: dict[str, str] = field(default_factory=dict)


def bodies() -> Iterator[Body]:
    """Yield them all."""
    yield from _no_json()
    yield from _deep()
    yield from _large()
    yield from _numbers()
    yield from _types()
    yield from _texts()
    yield from _media_types()
    yield from _pictures()
    yield from _headers()
    yield from _forms()
    yield from _chats()


def _no_json() -> Iterator[Body]:
    texts = [
        *(b"", b" ", b"\0", b"{", b"}", b"[", b"nul", b"{]", b'{"a"', b'{"a":', b'{"a":1,}', b"{'a': 1}", b"{a: 1}"),
        *(b'"', b'"\\', b'"\\u', b'"\\ud800"', b'{"instruction": "\\ud83d"}', b'{"instruction": "a\tb"}'),
        *(b'{"instruction": "a"} {"instruction": "b"}', b'{"instruction": "a"}\0', b"// a comment\n{}"),
        *(b'{"instruction": NaN}', b'{"n": Infinity}', b'{"n": -Infinity}', b'{"n": 01}', b'{"n": 1.}', b'{"n": 0x1}'),
        *(b'{"instruction": "a", "instruction": "b"}', b'{"outpaint": {"left": 1, "left": 2}}'),
        *(b'{"instruction": "\xff"}', b'{"instruction": "\xc0\xaf"}', b'{"instruction": "\xed\xa0\x80"}'),
    ]
    for number, text in enumerate(texts):
        yield Body(f"no JSON {number}: {text[:24]!r}", text)
    request = json.dumps({"instruction": "a house"})
    for encoding in ("utf-16", "utf-16-le", "utf-32", "utf-8-sig", "cp037"):
        yield Body(f"JSON in {encoding}", request.encode(encoding))


def _deep() -> Iterator[Body]:
    for depth in (33, 1_000, 100_000, 500_000):
        yield Body(f"{depth} lists", b"[" * depth + b"]" * depth)
        yield Body(f"{depth} objects", b'{"a":' * depth + b"1" + b"}" * depth)
        yield Body(f"{depth} lists in a field", b'{"instruction":' + b"[" * depth + b"]" * depth + b"}")


def _large() -> Iterator[Body]:
    yield Body("string of 900,000 characters", json.dumps({"instruction": "x" * 900_000}).encode())
    yield Body("string of escapes", b'{"instruction": "' + b"\\u0041" * 100_000 + b'"}')
    yield Body("string of backslashes", b'{"instruction": "' + b"\\\\" * 400_000 + b'"}')
    yield Body("key of 900,000 characters", json.dumps({"x" * 900_000: 1}).encode())
    key = json.dumps("x" * 100_000).encode()
    yield Body("long key twice", b"{" + key + b": 1, " + key + b": 2}")
    yield Body("10,000 fields", json.dumps({f"f{number}": number for number in range(10_000)}).encode())
    yield Body("300,000 elements", json.dumps({"history": [0] * 300_000}).encode())
    yield Body("100,000 empty strings", json.dumps({"history": [""] * 100_000}).encode())
    yield Body("white space", b" " * 900_000)
    yield Body("more than is taken", b"x" * 3_000_000)


def _numbers() -> Iterator[Body]:
    for number in (
        "9" * 5_000,
        "-" + "9" * 5_000,
        "1e400",
        "-1e400",
        "1e-400",
        "0." + "3" * 50_000,
        "1e309",
        "2" * 4_300,
    ):
        yield Body(
            f"number {number[:8]}", b'{"instruction": "a", "seed": %s}' % number.encode(), statuses=REFUSED | {202}
        )
        yield Body(
            f"scale {number[:8]}",
            b'{"instruction": "a", "guidance_scale": %s}' % number.encode(),
            statuses=REFUSED | {202},
        )


def _types() -> Iterator[Body]:
    for text in ("null", "true", "7", '"text"', "[]", "[{}]"):
        yield Body(f"no object but {text}", text.encode())
    for name in ("instruction", "size", "n", "model", "image", "outpaint", "history", "adapters", "guidance_interval"):
        for value in _STRANGE:
            yield Body(f"{name} is {value!r}", json.dumps({"instruction": "a", name: value}).encode())


def _texts() -> Iterator[Body]:
    """Yield texts that other programs have stumbled over; they are words like others, where they have a meaning."""
    taken = frozenset({202})
    for text in (
        *(
            "{{7*7}}",
            "${jndi:ldap://127.0.0.1/a}",
            "'; DROP TABLE jobs; --",
            "../../../etc/passwd",
            "<script>",
            "%00",
            "%s%n",
        ),
        *(
            "\u202eabc",
            "\ufeff",
            "e\u0301" * 500,
            "\U0001f3f4" * 500,
            "<gen_image>",
            "</s>",
            "[INST]",
            "(a:9999)",
            "BREAK " * 99,
        ),
    ):
        body = json.dumps({"instruction": text}).encode()
        yield Body(f"instruction {text[:16]!r}", body, statuses=taken | {422} if text == "\ufeff" else taken)
    for name in ("../../etc/passwd", "a\nb", "http://127.0.0.1/", "-", "x" * 128):
        yield Body(f"model {name[:16]!r}", json.dumps({"instruction": "a", "model": name}).encode())


def _media_types() -> Iterator[Body]:
    request = json.dumps({"instruction": "a"}).encode()
    for media_type in (
        *(None, "", "text/plain", "application/x-www-form-urlencoded", "application/xml", "application/json5"),
        *("application/jsonp", "image/png", FORM, ";", "application/json, text/plain", "a" * 4_000),
    ):
        yield Body(f"sent as {str(media_type)[:24]}", request, media_type=media_type, statuses=frozenset({415}))


def _pictures() -> Iterator[Body]:
    for text in (
        *(
            "",
            "!",
            "A",
            "AAA=A",
            "data:",
            "data:image/png;base64,",
            "data:text/html;base64,PGI+",
            "img_",
            "img_" + "0" * 40,
        ),
        *(
            "img_../../../etc/passwd",
            "file:///etc/passwd",
            "http://169.254.169.254/",
            "data:image/png,abc",
            "A" * 800_000,
        ),
        *("data:image/png;base64," + "\u0661" * 40, "iVBORw0KGgo=" * 20_000, examples.PIXEL + "AAAA"),
    ):
        body = json.dumps({"task": "similar", "image": text}).encode()
        yield Body(f"image {text[:24]!r}", body)
        yield Body(f"upload {text[:24]!r}", json.dumps({"image": text}).encode(), path="/v1/images")


def _headers() -> Iterator[Body]:
    request = json.dumps({"instruction": "a"}).encode()
    for key in ("", "x" * 256, "a b", "a\tb"):
        yield Body(f"idempotency key {key[:8]!r}", request, headers={"Idempotency-Key": key})
    for name, value in (
        *(("Prefer", "wait=-1"), ("Prefer", "wait=" + "9" * 400), ("Prefer", ", ,;=,"), ("Accept", "*" * 4_000)),
        *(("Accept", "a/b;q=" + "9" * 400), ("X-Request-Id", "x" * 4_000), ("Content-Encoding", "gzip")),
    ):
        taken = frozenset({200, 202})
        yield Body(f"{name}: {value[:16]}", request, headers={name: value}, statuses=taken)


def _part(name: str, data: bytes, *, file: str | None = None, more: str = "") -> bytes:
    shown = f'; filename="{file}"' if file is not None else ""
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"{shown}\r\n{more}\r\n'
    return head.encode() + data + b"\r\n"


def _forms() -> Iterator[Body]:
    end = f"--{BOUNDARY}--\r\n".encode()
    picture = _part("image", file_of(pixels_of()), file="a.png")
    prompt = _part("prompt", b"a house")
    forms = {
        "no part": end,
        "nothing": b"",
        "no end": picture + prompt,
        "no image": prompt + end,
        "no prompt": picture + end,
        "image as text": _part("image", b"iVBORw0KGgo=") + prompt + end,
        "prompt as file": picture + _part("prompt", b"a", file="p.txt") + end,
        "prompt twice": picture + prompt + prompt + end,
        "two images": picture + picture + prompt + end,
        "file of another field": picture + prompt + _part("other", b"x", file="x") + end,
        "unknown field": picture + prompt + _part("sead", b"1") + end,
        "no name": picture + _part("", b"x") + end,
        "long name": picture + _part("n" * 4_000, b"x") + end,
        "thousands of parts": b"".join(_part(f"f{number}", b"1") for number in range(5_000)) + end,
        "thousands of headers": _part("prompt", b"a", more="X-A: b\r\n" * 5_000) + end,
        "a header of 100,000 bytes": _part("prompt", b"a", more="X-A: " + "b" * 100_000 + "\r\n") + end,
        "field of 900,000 bytes": picture + _part("prompt", b"x" * 900_000) + end,
        "prompt that is not UTF-8": picture + _part("prompt", b"\xff\xfe") + end,
        "another boundary": picture.replace(BOUNDARY.encode(), b"other") + b"--other--\r\n",
        "line feeds alone": (picture + prompt + end).replace(b"\r\n", b"\n"),
        "boundaries alone": f"--{BOUNDARY}\r\n".encode() * 20_000 + end,
        "no disposition": f"--{BOUNDARY}\r\n\r\nx\r\n".encode() + end,
        "disposition of another kind": (picture + prompt + end).replace(b"form-data", b"attachment"),
        "encoded part": _part("prompt", b"YQ==", more="Content-Transfer-Encoding: base64\r\n") + end,
        "file name that leads elsewhere": _part("image", b"x", file="../../etc/passwd") + prompt + end,
        "no picture": _part("image", b"GIF89a", file="a.png") + prompt + end,
        "number in words": picture + prompt + _part("n", b"two") + end,
        "number without end": picture + prompt + _part("n", b"9" * 5_000) + end,
        "deep field": picture + prompt + _part("adapters", b"[" * 50_000) + end,
    }
    for name, data in forms.items():
        yield Body(f"form: {name}", data, path=EDITS, media_type=FORM)
    for media_type in ("multipart/form-data", "multipart/form-data; boundary=", "multipart/mixed; boundary=edge", JSON):
        yield Body(f"form sent as {media_type}", picture + prompt + end, path=EDITS, media_type=media_type)
    long = "b" * 100_000
    yield Body(
        "a boundary of 100,000",
        b"--" + b"b" * 100_000,
        path=EDITS,
        media_type=f"multipart/form-data; boundary={long[:4000]}",
    )


def _chats() -> Iterator[Body]:
    path = "/v1/chat/completions"
    for name, messages in {
        "no message": [],
        "message that is none": [7],
        "unknown role": [{"role": "root", "content": "a"}],
        "1,000 messages": [{"role": "user", "content": "a"}] * 1_000,
        "two pictures": [
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": examples.PIXEL}}] * 2}
        ],
        "picture by address": [
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://127.0.0.1:1/"}}]}
        ],
        "picture that is none": [
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]}
        ],
        "tool call": [{"role": "assistant", "content": "a", "tool_calls": [{}]}],
        "long text": [{"role": "user", "content": "x" * 500_000}],
    }.items():
        yield Body(f"chat: {name}", json.dumps({"model": "writer", "messages": messages}).encode(), path=path)
