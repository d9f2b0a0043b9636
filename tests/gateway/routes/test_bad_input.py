"""Every kind of bad request: a 4xx problem with a code and what to do, nothing queued, nothing stored."""

import json
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from shared.contracts import Problem
from tests.gateway.conftest import House

JSON = {"Content-Type": "application/json"}


def _stored(home: Path) -> list[Path]:
    return [path for path in (home / "artifacts").rglob("*") if path.is_file()]


async def _refused(house: House, home: Path, response: httpx.Response, status: int, code: str) -> Problem:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem = Problem.model_validate(response.json())
    assert problem.code == code
    assert problem.status == status
    assert problem.next_step
    assert problem.instance == f"urn:llmga:request:{response.headers['x-request-id']}"
    for library in ("pydantic", "Traceback", "json.decoder", "fastapi", "input_value", "errors.pydantic.dev"):
        assert library not in response.text
    assert await house.is_empty()
    assert _stored(home) == []
    return problem


FIELDS: list[tuple[str, object, str]] = [
    ("sizee", "128x128", "unknown_field"),
    ("instruction", "", "missing"),
    ("instruction", " \n\t ", "not_text"),
    ("instruction", "a\x00b", "not_text"),
    ("instruction", "x" * 100_000, "too_long"),
    ("instruction", 7, "wrong_type"),
    ("instruction", None, "wrong_type"),
    ("instruction", ["a"], "wrong_type"),
    ("negative_prompt", "x" * 100_000, "too_long"),
    ("size", "100x100", "not_a_size"),
    ("size", "130x128", "not_a_size"),
    ("size", "4096x4096", "not_a_size"),
    ("size", "99999999999999999999x8", "not_a_size"),
    ("size", "0x0", "not_a_size"),
    ("size", "-8x8", "not_a_size"),
    ("size", "big", "not_a_size"),
    ("size", 128, "wrong_type"),
    ("size", "512x512", "too_large"),
    ("n", 0, "out_of_range"),
    ("n", -1, "out_of_range"),
    ("n", 9, "out_of_range"),
    ("n", 10**30, "out_of_range"),
    ("n", 1.5, "wrong_type"),
    ("n", "2", "wrong_type"),
    ("n", True, "wrong_type"),
    ("seed", -1, "out_of_range"),
    ("seed", 2**53, "out_of_range"),
    ("num_inference_steps", 0, "out_of_range"),
    ("num_inference_steps", 151, "out_of_range"),
    ("guidance_scale", -0.5, "out_of_range"),
    ("guidance_scale", 31, "out_of_range"),
    ("guidance_scale", "7", "wrong_type"),
    ("deadline_s", 0, "out_of_range"),
    ("deadline_s", 1e300, "out_of_range"),
    ("scheduler", "magic", "not_offered"),
    ("scheduler", "heun", "not_offered"),
    ("task", "paint", "not_offered"),
    ("task", {}, "wrong_type"),
    ("lane", "express", "not_offered"),
    ("output_format", "gif", "not_offered"),
    ("model", "", "too_short"),
    ("model", "m" * 129, "too_long"),
    ("approve", "yes", "wrong_type"),
    ("image", "", "too_short"),
    ("image", 7, "wrong_type"),
    ("max_prompt_tokens", 15, "out_of_range"),
    ("max_prompt_tokens", 226, "too_large"),
]


@pytest.mark.parametrize(("field", "value", "code"), FIELDS, ids=lambda value: str(value)[:24])
async def test_bad_field_is_named_with_its_rule(
    house: House, tmp_path: Path, field: str, value: object, code: str
) -> None:
    response = await house.http.post("/v1/generations", json={"instruction": "a red house", field: value})
    problem = await _refused(house, tmp_path, response, 422, "invalid_request")
    assert [(error.field, error.code) for error in problem.errors] == [(field, code)]
    assert problem.errors[0].message
    assert len(response.content) < 2_000  # what was sent is not sent back


async def test_all_faults_are_reported_at_once(house: House, tmp_path: Path) -> None:
    response = await house.http.post("/v1/generations", json={"n": 0, "size": "1x1", "stepps": 3})
    problem = await _refused(house, tmp_path, response, 422, "invalid_request")
    assert {(error.field, error.code) for error in problem.errors} == {
        ("instruction", "missing"),
        ("n", "out_of_range"),
        ("size", "not_a_size"),
        ("stepps", "unknown_field"),
    }


async def test_unknown_field_gets_a_suggestion(house: House, tmp_path: Path) -> None:
    response = await house.http.post("/v1/generations", json={"instruction": "a", "guidance": 3})
    problem = await _refused(house, tmp_path, response, 422, "invalid_request")
    assert "did you mean `guidance_scale`?" in problem.errors[0].message


async def test_thousands_of_unknown_fields_are_reported_briefly(house: House, tmp_path: Path) -> None:
    body = {f"{i:05}" + "x" * 80: i for i in range(5_000)}
    response = await house.http.post("/v1/generations", json=body)
    problem = await _refused(house, tmp_path, response, 422, "invalid_request")
    assert len(problem.errors) == 20
    assert len(response.content) < 10_000


@pytest.mark.parametrize(
    "wishes",
    [
        {"task": "prompt", "prompt_mode": "verbatim"},
        {"task": "prompt", "approve": True},
        {"approve": True, "prompt_mode": "verbatim"},
        {"image": "img_" + "0" * 40},
        {"task": "similar", "image": "img_" + "0" * 40, "prompt_mode": "verbatim"},
    ],
)
async def test_contradicting_wishes_are_refused(house: House, tmp_path: Path, wishes: dict[str, object]) -> None:
    response = await house.http.post("/v1/generations", json={"instruction": "a red house", **wishes})
    problem = await _refused(house, tmp_path, response, 422, "invalid_request")
    assert [(error.field, error.code) for error in problem.errors] == [("", "contradiction")]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"not json",
        b'{"instruction": "a",}',
        b"{'instruction': 'a'}",
        b'{"instruction": "a", "guidance_scale": NaN}',
        b'{"instruction": "a", "guidance_scale": Infinity}',
        b'{"instruction": "a", "guidance_scale": -Infinity}',
        b'{"instruction": "a", "instruction": "b"}',
        b'{"instruction": "\xff"}',
        b'{"instruction": "\\ud800"}',
        b'{"\\ud800": 1}',
        b'\xef\xbb\xbf{"instruction": "a"}',
        b'{"instruction": "a", "seed": ' + b"9" * 5_000 + b"}",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"instruction": ' + b"[" * 33 + b"]" * 33 + b"}",
        b"[" * 300_000 + b"]" * 300_000,
    ],
    ids=lambda body: str(body[:32]),
)
async def test_body_that_is_not_json_is_malformed(house: House, tmp_path: Path, body: bytes) -> None:
    response = await house.http.post("/v1/generations", content=body, headers=JSON)
    await _refused(house, tmp_path, response, 400, "malformed_json")


@pytest.mark.parametrize("body", [b"[]", b'"a"', b"3", b"null", b"true"])
async def test_json_that_is_no_object_is_refused(house: House, tmp_path: Path, body: bytes) -> None:
    response = await house.http.post("/v1/generations", content=body, headers=JSON)
    problem = await _refused(house, tmp_path, response, 422, "invalid_request")
    assert [(error.field, error.code) for error in problem.errors] == [("", "wrong_type")]


async def test_number_too_large_for_a_float_is_not_finite(house: House, tmp_path: Path) -> None:
    body = b'{"instruction": "a", "guidance_scale": 1e999}'
    response = await house.http.post("/v1/generations", content=body, headers=JSON)
    problem = await _refused(house, tmp_path, response, 422, "invalid_request")
    assert [(error.field, error.code) for error in problem.errors] == [("guidance_scale", "not_finite")]


@pytest.mark.parametrize(
    "media_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "application/xml", ""]
)
async def test_other_media_type_is_refused(house: House, tmp_path: Path, media_type: str) -> None:
    response = await house.http.post(
        "/v1/generations", content=b'{"instruction": "a"}', headers={"Content-Type": media_type}
    )
    await _refused(house, tmp_path, response, 415, "unsupported_media_type")


async def test_body_without_media_type_is_refused(house: House, tmp_path: Path) -> None:
    response = await house.http.post("/v1/generations", content=b'{"instruction": "a"}')
    await _refused(house, tmp_path, response, 415, "unsupported_media_type")


async def test_declared_body_above_the_limit_is_refused(house: House, tmp_path: Path) -> None:
    body = json.dumps({"instruction": "x" * 2_000_000}).encode()
    response = await house.http.post("/v1/generations", content=body, headers=JSON)
    await _refused(house, tmp_path, response, 413, "body_too_large")


async def test_chunked_body_above_the_limit_is_refused(house: House, tmp_path: Path) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        yield b'{"instruction": "'
        for _ in range(64):
            yield b"x" * 65_536
        yield b'"}'

    response = await house.http.post("/v1/generations", content=chunks(), headers=JSON)
    await _refused(house, tmp_path, response, 413, "body_too_large")
    assert (await house.http.get("/livez")).status_code == 200


async def test_path_that_does_not_exist_is_not_found(house: House, tmp_path: Path) -> None:
    for path in ("/", "/v1", "/v2/generations", "/v1/generations/", "/docs", "/redoc", "/v1/jobs/"):
        response = await house.http.get(path)
        await _refused(house, tmp_path, response, 404, "not_found")


async def test_method_that_does_not_exist_names_those_that_do(house: House, tmp_path: Path) -> None:
    response = await house.http.get("/v1/generations")
    await _refused(house, tmp_path, response, 405, "method_not_allowed")
    assert response.headers["allow"] == "POST"
    response = await house.http.delete("/v1/images/img_1")
    assert set(response.headers["allow"].split(", ")) == {"GET", "HEAD"}
