"""`docs/api.md` is true: its commands run, and its tables name what there is, all of it."""

import asyncio
import inspect
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from gateway import negotiation, pictures, resolve
from gateway.app import create_app
from gateway.sessions import composition
from gateway.webhooks import terms
from shared import errors, validation
from shared.contracts import EventType, GenerationRequest, Job, JobStatus, Problem, Scheduler, UploadedImage
from shared.contracts.sessions import Turn, TurnRequest
from shared.contracts.webhooks import Webhook, WebhookEvent, WebhookMessage
from shared.settings import Settings
from tests.gateway.conftest import House

PAGE = Path(__file__).parents[2] / "docs" / "api.md"
TEXT = PAGE.read_text()
COMMANDS = re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL)


def _section(title: str) -> str:
    found = re.search(rf"^##+ {title}\n(.*?)(?=^##+ |\Z)", TEXT, re.DOTALL | re.MULTILINE)
    assert found is not None, f"the page has no section {title!r}"
    return found[1]


def _column(text: str, number: int = 0) -> list[str]:
    """Return the code words of a column of the tables in the text."""
    words: list[str] = []
    for line in text.splitlines():
        if line.startswith("| "):
            words += re.findall(r"`([^`]+)`", line.split("|")[number + 1])
    return words


def test_every_call_is_listed() -> None:
    listed = {tuple(word.split(" ")) for word in _column(_section("Calls"))}
    described = {
        (method.upper(), re.sub(r"\{(job|image|session)_id\}", "{id}", path))
        for path, methods in create_app(Settings()).openapi()["paths"].items()
        for method in methods
        if method != "head"
    }
    assert listed == described


def test_every_field_of_a_request_is_listed() -> None:
    table = _section("Submit a request").partition("A picture like")[0]
    assert set(_column(table)) == set(GenerationRequest.model_fields)
    assert {word for word in _column(table, 1) if word in set(Scheduler)} == set(Scheduler)


def test_every_field_of_a_job_and_every_status_is_listed() -> None:
    words = _column(_section("Look at a job"))
    assert set(words) == set(Job.model_fields) | set(JobStatus)


def test_every_field_of_a_turn_is_listed() -> None:
    places = set(TurnRequest.model_fields) - set(GenerationRequest.model_fields)
    assert set(_column(_section("Say what comes next").partition("It answers")[0])) == places
    assert set(_column(_section("Look at a session"))) == set(Turn.model_fields)


def test_every_field_of_a_webhook_is_listed() -> None:
    asked, _, sent = _section("Webhooks").partition("`GET /v1/webhooks` lists")
    assert set(_column(asked)) == set(Webhook.model_fields)
    assert set(WebhookEvent) <= set(_column(asked, 2))
    assert set(_column(sent)) == set(WebhookMessage.model_fields)


def test_every_field_of_an_upload_is_listed() -> None:
    assert set(_column(_section("Upload a picture"))) == set(UploadedImage.model_fields)


def test_every_event_is_listed() -> None:
    assert set(_column(_section("Events"))) == set(EventType)


def _classes(base: type[errors.LLMGAError]) -> set[type[errors.LLMGAError]]:
    return {base}.union(*(_classes(child) for child in base.__subclasses__()))


def test_every_error_is_listed_with_its_status() -> None:
    answers, _, jobs = _section("Errors").partition("A job that fails")
    rows = re.findall(r"^\| (\d+) \| `(\w+)`", answers, re.MULTILINE)
    listed = {code: int(status) for status, code in rows}
    # A class without a code of its own is what others share; it is never raised.
    codes = {kind.code: kind.status for kind in _classes(errors.LLMGAError) if "code" in vars(kind)}
    for code, status in listed.items():
        assert codes[code] == status
    known = set(listed) | set(_column(jobs))
    assert set(codes) - {"job_failed"} == known


def test_every_code_of_a_field_is_listed() -> None:
    table = _section("Errors").partition("| code in `errors`")[2].partition("A job that fails")[0]
    source = "".join(
        inspect.getsource(module) for module in (validation, negotiation, pictures, resolve, composition, terms)
    )
    raised = set(re.findall(r'return "(\w+)",', source))
    raised |= set(re.findall(r'code="(\w+)"', source)) | set(validation._VALIDATOR_CODES.values())
    raised |= {"out_of_range", "not_valid", "wrong_type", "too_large"}
    assert set(_column(table)) == raised


def test_example_problem_is_one() -> None:
    (example,) = re.findall(r"```json\n(.*?)```", _section("Errors"), re.DOTALL)
    Problem.model_validate(json.loads(example))


async def test_commands_run_as_they_stand(house: House, tmp_path: Path) -> None:
    """Run all commands in one shell, each answer into a file of its own."""
    assert len(COMMANDS) > 10
    script = ["set -eu"]
    for number, command in enumerate(COMMANDS):
        text = command.replace("http://127.0.0.1:8080", house.url)
        script += [f"exec >{tmp_path}/{number}.out", text]
    process = await asyncio.create_subprocess_exec(
        "sh",
        "-c",
        "\n".join(script),
        cwd=tmp_path,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "no_proxy": "*"},
    )
    _, complaints = await process.communicate()
    assert process.returncode == 0, complaints.decode()
    assert complaints == b""
    assert (tmp_path / "snowman.png").read_bytes().startswith(b"\x89PNG")
    for number, command in enumerate(COMMANDS):
        answer = (tmp_path / f"{number}.out").read_text()
        if "curl" in command and "-o " not in command:
            _looks_right(command, answer)


def _looks_right(command: str, answer: str) -> None:
    if "-sSN" in command:
        assert "event: job.succeeded" in answer
        if "Last-Event-ID" in command:
            assert answer.count("event: job.queued\n") == 1  # the first one is left out
        return
    value: dict[str, Any] = json.loads(answer)
    assert "code" not in value, answer
    if "wait=120" in command and "approve" not in command:
        assert value["status"] == "succeeded"


@pytest.mark.parametrize("anchor", sorted(set(re.findall(r"\]\(#([a-z-]+)\)", TEXT))))
def test_links_within_the_page_lead_somewhere(anchor: str) -> None:
    headings = re.findall(r"^#+ (.+)$", TEXT, re.MULTILINE)
    assert anchor in {heading.lower().replace(" ", "-") for heading in headings}
