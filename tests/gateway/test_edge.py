"""Request ids, security headers, metrics, and unexpected exceptions."""

import asyncio
import logging
from collections.abc import AsyncIterator

import httpx
import pytest
from fastapi import Request
from prometheus_client import generate_latest
from starlette.responses import StreamingResponse

from gateway.server import GatewayServer
from shared.metrics import REGISTRY


@pytest.mark.parametrize("given", ["abc", "A-1_b.c", "x" * 64])
async def test_request_id_of_the_client_is_kept(http: httpx.AsyncClient, given: str) -> None:
    response = await http.get("/livez", headers={"X-Request-Id": given})
    assert response.headers["x-request-id"] == given


@pytest.mark.parametrize("given", ["", "two words", "x" * 65, "a;b", "ü", "<script>"])
async def test_unusable_request_id_is_replaced(http: httpx.AsyncClient, given: str) -> None:
    response = await http.get("/livez", headers={b"X-Request-Id": given.encode()})
    assert response.headers["x-request-id"].startswith("req_")


@pytest.mark.parametrize("path", ["/livez", "/v1/models", "/nowhere", "/openapi.json", "/v1/jobs/x"])
async def test_every_answer_has_an_id_and_the_security_headers(http: httpx.AsyncClient, path: str) -> None:
    response = await http.get(path)
    assert response.headers["x-request-id"]
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["x-frame-options"] == "DENY"
    assert "default-src 'none'" in response.headers["content-security-policy"]
    assert "server" not in response.headers


async def test_unexpected_exception_shows_the_request_id_and_nothing_else(
    gateway: GatewayServer, http: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    @gateway.app.get("/broken")
    async def broken() -> None:
        raise RuntimeError("a secret")

    with caplog.at_level(logging.ERROR):
        response = await http.get("/broken", headers={"X-Request-Id": "mine"})
    assert response.status_code == 500
    problem = response.json()
    assert problem["code"] == "internal_error"
    assert problem["instance"] == "urn:llmga:request:mine"
    assert "secret" not in response.text
    assert "RuntimeError" not in response.text
    assert "a secret" in caplog.text
    assert response.headers["x-content-type-options"] == "nosniff"


async def test_parameter_of_the_wrong_type_is_a_problem_too(gateway: GatewayServer, http: httpx.AsyncClient) -> None:
    @gateway.app.get("/typed/{number}")
    async def typed(number: int) -> None: ...

    response = await http.get("/typed/one")
    assert response.status_code == 422
    problem = response.json()
    assert problem["code"] == "invalid_request"
    assert [(error["field"], error["code"]) for error in problem["errors"]] == [("path.number", "wrong_type")]


async def test_exception_in_the_middle_of_an_answer_cuts_it_off(
    gateway: GatewayServer, http: httpx.AsyncClient
) -> None:
    async def half() -> AsyncIterator[bytes]:
        yield b"half"
        raise RuntimeError("a secret")

    @gateway.app.get("/half")
    async def answer(request: Request) -> StreamingResponse:
        return StreamingResponse(half())

    with pytest.raises(httpx.RemoteProtocolError):
        await http.get("/half")


async def test_requests_are_counted_by_route_not_by_path(http: httpx.AsyncClient) -> None:
    for _ in range(3):
        await http.get("/v1/jobs/job_that_is_not_there")
        await http.request("PROPFIND", "/pot-of-tea")
    await asyncio.sleep(0)
    text = generate_latest(REGISTRY).decode()
    assert 'llmga_http_requests_total{method="GET",route="/v1/jobs/{job_id}",status="404"}' in text
    assert 'llmga_http_requests_total{method="other",route="other",status="404"}' in text
    assert "job_that_is_not_there" not in text
    assert "pot-of-tea" not in text
