import asyncio
import json
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import pytest

from shared.logs import UVICORN_LOGGERS, bind, configure, redact
from shared.settings import LogSettings

LOG = logging.getLogger("llmga.test")


class Written:
    """What was written to standard error so far."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys
        self._text = ""

    def text(self) -> str:
        self._text += self._capsys.readouterr().err
        return self._text


@pytest.fixture
def stderr(capsys: pytest.CaptureFixture[str]) -> Iterator[Written]:
    """Yield what is written to standard error, and put logging back afterwards."""
    loggers = [logging.getLogger(), *map(logging.getLogger, UVICORN_LOGGERS)]
    before = [(logger, logger.handlers[:], logger.level, logger.propagate) for logger in loggers]
    yield Written(capsys)
    logging.captureWarnings(False)
    for logger, handlers, level, propagate in before:
        logger.handlers[:], logger.propagate = handlers, propagate
        logger.setLevel(level)


def lines(stderr: Written) -> list[dict[str, Any]]:
    return [json.loads(line, parse_constant=pytest.fail) for line in stderr.text().split("\n") if line]


def last(stderr: Written) -> dict[str, Any]:
    return lines(stderr)[-1]


def test_a_record_is_one_json_object_on_one_line(stderr: Written) -> None:
    configure(LogSettings(), service="gateway")
    LOG.info("first\nsecond \u2028 %s", "雪", extra={"route": "/v1/jobs/{id}", "status": 200, "seconds": 0.5})
    (record,) = lines(stderr)
    assert record["message"] == "first\nsecond \u2028 雪"
    assert (record["level"], record["service"], record["logger"]) == ("INFO", "gateway", "llmga.test")
    assert (record["route"], record["status"], record["seconds"]) == ("/v1/jobs/{id}", 200, 0.5)
    assert record["time"].endswith("+00:00")


def test_bound_ids_are_on_every_record_within_and_none_without(stderr: Written) -> None:
    configure(LogSettings(), service="gateway")
    with bind(request_id="req_1", worker="w"):
        with bind(job_id="job_1", request_id=None):
            LOG.info("inner")
        LOG.info("outer")
    LOG.info("outside")
    inner, outer, outside = lines(stderr)
    assert (inner["request_id"], inner["job_id"], inner["worker"]) == ("req_1", "job_1", "w")
    assert outer["request_id"] == "req_1"
    assert "job_id" not in outer
    assert {"request_id", "job_id", "worker"} & set(outside) == set()


def test_ids_are_unbound_when_the_block_raises(stderr: Written) -> None:
    configure(LogSettings(), service="gateway")
    with pytest.raises(KeyError), bind(job_id="job_1"):
        raise KeyError
    LOG.info("after")
    assert "job_id" not in last(stderr)


async def test_concurrent_tasks_and_their_threads_keep_their_own_ids(stderr: Written) -> None:
    configure(LogSettings(), service="gateway")
    barrier = asyncio.Barrier(5)

    async def work(number: int) -> None:
        with bind(job_id=f"job_{number}"):
            await barrier.wait()
            await asyncio.to_thread(LOG.info, "at work", extra={"number": number})

    await asyncio.gather(*(work(number) for number in range(5)))
    found = lines(stderr)
    assert len(found) == 5
    assert all(record["job_id"] == f"job_{record['number']}" for record in found)


def test_an_exception_is_a_field_with_its_traceback(stderr: Written) -> None:
    configure(LogSettings(), service="gateway")
    try:
        raise RuntimeError("no way to redis://:hunter2@queue:6379/0")
    except RuntimeError:
        LOG.exception("failed")
    record = last(stderr)
    assert record["level"] == "ERROR"
    assert "test_logs.py" in record["exception"]
    assert "RuntimeError: no way to redis://:***@queue:6379/0" in record["exception"]


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("redis://:hunter2@h:6379/0", "redis://:***@h:6379/0"),
        ("rediss://user:hunter2@h", "rediss://user:***@h"),
        ("at 'https://a:hun@ter2@h/p' now", "at 'https://a:***@h/p' now"),
        ("two redis://:hunter2@a and redis://:hunter2@b", "two redis://:***@a and redis://:***@b"),
        ("redis://h/0?password=hunter2&db=1", "redis://h/0?password=***&db=1"),
        ("Authorization: Bearer hunter2hunter2", "Authorization: Bearer ***"),
        ("http://h:8080/a@b", "http://h:8080/a@b"),
        ("http://h:8080 and me@example.org", "http://h:8080 and me@example.org"),
        ("user@host, 12:30", "user@host, 12:30"),
    ],
)
def test_passwords_are_taken_out_of_text_and_nothing_else_is(text: str, safe: str) -> None:
    assert redact(text) == safe


@pytest.mark.parametrize("log_format", ["json", "text"])
def test_no_password_or_prompt_gets_out(log_format: str, stderr: Written) -> None:
    configure(LogSettings.model_validate({"format": log_format}), service="gateway")
    url = "redis://:hunter2@queue/0"
    LOG.warning("to %s", url, extra={"url": url, "urls": [url], "nested": {"token": "hunter2", "at": url}})
    LOG.warning("asked", extra={"instruction": "my secret wish", "negative_prompt": "my secret fear", "prompt": None})
    LOG.warning("asked", extra={"request": {"instruction": "my secret wish", "n": 2}})
    LOG.warning("asked", extra={"password": "hunter2", "Authorization": "Bearer hunter2", "api_key": "hunter2"})
    text = stderr.text()
    assert "hunter2" not in text
    assert "secret" not in text
    assert "<14 characters>" in text
    assert "***@queue" in text


def test_prompts_are_written_when_asked_for(stderr: Written) -> None:
    configure(LogSettings(prompts=True), service="gateway")
    LOG.info("asked", extra={"instruction": "a snowman"})
    assert last(stderr)["instruction"] == "a snowman"


def test_counts_of_tokens_are_no_secret(stderr: Written) -> None:
    configure(LogSettings(), service="mllm")
    LOG.info("done", extra={"prompt_tokens": 31, "completion_tokens": 64})
    assert (last(stderr)["prompt_tokens"], last(stderr)["completion_tokens"]) == (31, 64)


def test_fields_that_json_cannot_hold_become_text(stderr: Written) -> None:
    configure(LogSettings(), service="gateway")
    LOG.info(
        "odd", extra={"nan": float("nan"), "inf": [float("inf")], "type": ValueError, "raw": b"\xff", "half": "\ud800"}
    )
    record = last(stderr)
    assert (record["nan"], record["inf"]) == ("nan", ["inf"])
    assert "ValueError" in record["type"]


def test_a_field_cannot_pose_as_the_record(stderr: Written) -> None:
    configure(LogSettings(), service="gateway")
    LOG.info("true", extra={"level": "DEBUG", "service": "other", "time": "never"})
    record = last(stderr)
    assert (record["level"], record["service"]) == ("INFO", "gateway")
    assert (record["extra_level"], record["extra_service"]) == ("DEBUG", "other")


def test_text_from_outside_cannot_start_a_line(stderr: Written) -> None:
    configure(LogSettings(format="text"), service="gateway")
    LOG.info("hello\n12:00:00 ERROR forged \x1b[31m \u2028", extra={"name_": "a\r\nb"})
    (line,) = stderr.text().splitlines()
    assert line.endswith(r"INFO    gateway llmga.test: hello\n12:00:00 ERROR forged \x1b[31m \u2028 name_=a\r\nb")


def test_text_shows_a_traceback_below_its_line(stderr: Written) -> None:
    configure(LogSettings(format="text"), service="gateway")
    try:
        raise RuntimeError("broken")
    except RuntimeError:
        LOG.exception("failed")
    written = stderr.text().splitlines()
    assert written[0].endswith("failed")
    assert written[-1] == "RuntimeError: broken"


def test_configuring_again_replaces_the_first_time(stderr: Written) -> None:
    configure(LogSettings(), service="first")
    configure(LogSettings(level="WARNING"), service="second")
    LOG.info("too low")
    LOG.warning("once")
    assert [(record["service"], record["message"]) for record in lines(stderr)] == [("second", "once")]


def test_uvicorn_writes_through_us_and_once(stderr: Written) -> None:
    for name in UVICORN_LOGGERS:
        logger = logging.getLogger(name)
        logger.addHandler(logging.StreamHandler())
        logger.propagate = False
        logger.setLevel(logging.CRITICAL)
    configure(LogSettings(), service="gateway")
    logging.getLogger("uvicorn.error").info("Started server process [%d]", 7, extra={"color_message": "x"})
    (record,) = lines(stderr)
    assert record["message"] == "Started server process [7]"
    assert "color_message" not in record


def test_warnings_become_records(stderr: Written) -> None:
    configure(LogSettings(), service="gateway")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(False)
        logging.captureWarnings(True)
        warnings.warn("old ways", DeprecationWarning, stacklevel=1)
        logging.captureWarnings(False)
    assert "old ways" in last(stderr)["message"]


def test_records_of_other_libraries_come_out_too(stderr: Written) -> None:
    configure(LogSettings(), service="gateway")
    logging.getLogger("somebody.else").error("broken")
    assert last(stderr)["logger"] == "somebody.else"
