"""The description is complete, its examples are true, and it says what is answered."""

import asyncio
from typing import Any

import httpx
import pytest
from pydantic import TypeAdapter

from clients.sse import messages
from gateway import examples
from gateway.answers import ModelCard, ModelList, Readiness
from gateway.app import create_app
from gateway.approval import Approval
from gateway.openai.chat_shapes import ChatBody, ChatCompletion
from gateway.openai.image_answers import ImagesAnswer
from gateway.openai.image_requests import ImageBody
from gateway.routes.images import Upload
from shared.contracts import (
    Event,
    EventType,
    GenerationRequest,
    Job,
    JobList,
    OpenAIErrorEnvelope,
    Problem,
    UploadedImage,
)
from shared.contracts.sessions import Session, SessionList, SessionRequest, SessionSummary, TurnRequest
from shared.contracts.webhooks import WebhookTerms
from shared.settings import Settings
from tests.gateway.conftest import House, until

PARTS: dict[str, TypeAdapter[Any]] = {
    name: TypeAdapter(kind)
    for name, kind in {
        "GenerationRequest": GenerationRequest,
        "Job": Job,
        "JobList": JobList,
        "Event": Event,
        "Problem": Problem,
        "ModelList": ModelList,
        "Readiness": Readiness,
        "Approval": Approval,
        "Upload": Upload,
        "UploadedImage": UploadedImage,
        "ModelCard": ModelCard,
        "ImageBody": ImageBody,
        "ImagesAnswer": ImagesAnswer,
        "ChatBody": ChatBody,
        "ChatCompletion": ChatCompletion,
        "OpenAIErrorEnvelope": OpenAIErrorEnvelope,
        "SessionRequest": SessionRequest,
        "SessionSummary": SessionSummary,
        "SessionList": SessionList,
        "Session": Session,
        "TurnRequest": TurnRequest,
        "WebhookTerms": WebhookTerms,
    }.items()
}


@pytest.fixture(scope="module")
def description() -> dict[str, Any]:
    """Return the description."""
    return create_app(Settings()).openapi()


def _media(description: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Return (where, media type object) of every body and answer."""
    found = []
    for path, operations in description["paths"].items():
        for method, operation in operations.items():
            where = f"{method} {path}"
            for kind, media in operation.get("requestBody", {}).get("content", {}).items():
                found.append((f"{where} body {kind}", media))
            for status, answer in operation["responses"].items():
                for kind, media in answer.get("content", {}).items():
                    found.append((f"{where} {status} {kind}", media))
    return found


def test_every_example_is_valid(description: dict[str, Any]) -> None:
    checked = 0
    for where, media in _media(description):
        given = [media["example"]] if "example" in media else []
        given += [example["value"] for example in media.get("examples", {}).values()]
        schema = media.get("schema", {})
        reference = schema.get("$ref") or schema.get("items", {}).get("$ref")
        if reference is None:
            continue
        assert given, f"{where} has no example"
        adapter = PARTS[reference.rpartition("/")[2]]
        for example in given:
            for one in example if schema.get("type") == "array" else [example]:
                adapter.validate_python(one)
                checked += 1
    assert checked > 30


def test_every_reference_leads_somewhere(description: dict[str, Any]) -> None:
    schemas = description["components"]["schemas"]

    def walk(node: Any) -> None:
        if isinstance(node, dict):
            if "$ref" in node:
                assert node["$ref"].rpartition("/")[2] in schemas
            for value in node.values():
                walk(value)
        elif isinstance(node, list):
            for value in node:
                walk(value)

    walk(description)
    assert not any("HTTPValidationError" in name for name in schemas)


def test_operations_have_ids_of_their_own_and_say_what_can_go_wrong(description: dict[str, Any]) -> None:
    operations = [one for path in description["paths"].values() for one in path.values()]
    ids = [operation["operationId"] for operation in operations]
    assert len(ids) == len(set(ids))
    for path, methods in description["paths"].items():
        if path.startswith("/v1/"):
            for operation in methods.values():
                assert "500" in operation["responses"]
                assert operation["summary"]


def test_example_stream_parses_as_the_example_events() -> None:
    streamed = list(messages(examples.EVENT_STREAM.splitlines()))
    assert [event.id for event in streamed] == [event["id"] for event in examples.EVENTS[:3]]
    assert all(EventType(event.event) for event in streamed)


async def test_description_is_served(http: httpx.AsyncClient) -> None:
    response = await http.get("/openapi.json")
    assert response.status_code == 200
    assert response.json()["openapi"].startswith("3.1")


async def test_what_is_answered_is_described(house: House, description: dict[str, Any]) -> None:
    job = await house.submit()
    await until(lambda: bool(house.render.claims))
    body = {"instruction": "a"}
    finished = await house.http.post("/v1/generations", json=body, headers={"Prefer": "wait=60"})
    image = finished.json()["images"][0]["id"]
    session_id = (await house.http.post("/v1/sessions")).json()["id"]
    doomed_id = (await house.http.post("/v1/sessions")).json()["id"]
    paths = description["paths"]
    calls = [
        ("post", "/v1/generations", {}, {"json": body}),
        ("post", "/v1/generations", {}, {"json": body, "headers": {"Prefer": "wait=60"}}),
        ("post", "/v1/generations", {}, {"json": body, "headers": {"Accept": "text/event-stream"}}),
        ("post", "/v1/generations", {}, {"content": b"{"}),
        ("post", "/v1/generations", {}, {"content": b"{", "headers": {"Content-Type": "application/json"}}),
        ("post", "/v1/generations", {}, {"json": {"n": 0}}),
        ("post", "/v1/generations", {}, {"content": b" " * 2_000_000}),
        ("get", "/v1/jobs", {}, {}),
        ("get", "/v1/jobs", {}, {"params": {"status": "lost"}}),
        ("get", "/v1/jobs/{job_id}", {"job_id": job.id}, {}),
        ("get", "/v1/jobs/{job_id}", {"job_id": "nope"}, {}),
        ("get", "/v1/jobs/{job_id}/events", {"job_id": job.id}, {}),
        ("get", "/v1/jobs/{job_id}/events", {"job_id": job.id}, {"headers": {"Accept": "application/json"}}),
        ("get", "/v1/jobs/{job_id}/events", {"job_id": job.id}, {"params": {"after": "x"}}),
        ("post", "/v1/jobs/{job_id}/cancel", {"job_id": job.id}, {}),
        ("post", "/v1/jobs/{job_id}/approve", {"job_id": job.id}, {}),
        ("post", "/v1/generations", {}, {"json": {"task": "similar", "image": "!"}}),
        ("post", "/v1/sessions", {}, {"json": {"name": "a"}}),
        ("post", "/v1/sessions", {}, {"json": {"nane": "a"}}),
        ("get", "/v1/sessions", {}, {}),
        ("get", "/v1/webhooks", {}, {}),
        ("post", "/v1/sessions/{session_id}/turns", {"session_id": session_id}, {"json": body}),
        ("post", "/v1/sessions/{session_id}/turns", {"session_id": session_id}, {"json": {"parent": 9}}),
        ("post", "/v1/sessions/{session_id}/turns", {"session_id": "nope"}, {"json": body}),
        ("get", "/v1/sessions/{session_id}", {"session_id": session_id}, {}),
        ("delete", "/v1/sessions/{session_id}", {"session_id": doomed_id}, {}),
        ("delete", "/v1/sessions/{session_id}", {"session_id": doomed_id}, {}),
        ("post", "/v1/images", {}, {"json": {"image": examples.PIXEL}}),
        ("post", "/v1/images", {}, {"json": {}}),
        ("post", "/v1/images", {}, {"content": b"{", "headers": {"Content-Type": "application/json"}}),
        ("post", "/v1/images", {}, {"content": b"a", "headers": {"Content-Type": "image/png"}}),
        ("post", "/v1/images", {}, {"content": b"a"}),
        ("post", "/v1/images", {}, {"content": b" " * 2_000_000}),
        ("get", "/v1/images/{image_id}", {"image_id": image}, {}),
        ("get", "/v1/images/{image_id}", {"image_id": image}, {"headers": {"If-None-Match": "*"}}),
        ("get", "/v1/images/{image_id}", {"image_id": "nope"}, {}),
        ("head", "/v1/images/{image_id}", {"image_id": image}, {}),
        ("get", "/v1/models", {}, {}),
        ("get", "/livez", {}, {}),
        ("get", "/readyz", {}, {}),
        ("get", "/health", {}, {}),
    ]
    for method, path, names, options in calls:
        response = await house.http.request(method.upper(), path.format(**names), **options)  # type: ignore[arg-type]
        described = paths[path][method]["responses"].get(str(response.status_code))
        assert described is not None, (method, path, response.status_code, response.text)
        kind = response.headers.get("content-type", "").partition(";")[0]
        if kind:
            assert kind in described["content"], (method, path, response.status_code, kind)
        if kind == "application/json":
            schema = described["content"][kind]["schema"]
            reference = schema.get("$ref") or schema.get("items", {}).get("$ref")
            if reference:
                adapter = PARTS[reference.rpartition("/")[2]]
                value = response.json()
                for one in value if schema.get("type") == "array" else [value]:
                    adapter.validate_python(one)
        await asyncio.sleep(0)
