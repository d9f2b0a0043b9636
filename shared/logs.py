"""Logs on standard error: one JSON object (or one line of text) per record.

`bind` puts the ids of the request, job and worker at hand on every record made within it, across awaits.
Whatever is passed as `extra` becomes a field. Two things never get out: passwords (of URLs, and fields that
hold secrets), and, unless `LLMGA_LOG__PROMPTS` is set, the words of people and models (fields that hold them
keep their length only).
"""

import json
import logging
import math
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any

from shared.settings import LogSettings

UVICORN_LOGGERS = ("uvicorn", "uvicorn.error", "uvicorn.access")
SECRET_FIELDS = frozenset({"password", "secret", "token", "api_key", "authorization", "cookie"})
PROMPT_FIELDS = frozenset({"instruction", "prompt", "negative_prompt", "prompt_text", "answer"})

_MASK = "***"
# user:password@ of a URL, up to the last @ before the path, as urllib.parse splits it; redis-py also takes
# ?password=
_URL_PASSWORD = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://[^\s/:@?#\"]*):[^\s/?#\"]*@")
_QUERY_PASSWORD = re.compile(r"([?&](?:password|secret|token|api_key|key|signature)=)[^&\s\"']+", re.IGNORECASE)
_BEARER = re.compile(r"\b(Bearer|Basic)\s+[A-Za-z0-9._~+/=-]{8,}", re.IGNORECASE)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message"}

_context: ContextVar[Mapping[str, str]] = ContextVar("llmga_log_context", default=MappingProxyType({}))


@contextmanager
def bind(*, request_id: str | None = None, job_id: str | None = None, worker: str | None = None) -> Iterator[None]:
    """Put these ids on every record made within the block, beside those bound outside it."""
    given = {"request_id": request_id, "job_id": job_id, "worker": worker}
    token = _context.set({**_context.get(), **{name: value for name, value in given.items() if value is not None}})
    try:
        yield
    finally:
        _context.reset(token)


def redact(text: str) -> str:
    """Return the text without the passwords of the URLs in it and without bearer tokens."""
    text = _URL_PASSWORD.sub(rf"\1:{_MASK}@", text)
    text = _QUERY_PASSWORD.sub(rf"\1{_MASK}", text)
    return _BEARER.sub(rf"\1 {_MASK}", text)


def configure(settings: LogSettings, *, service: str, adopt: Iterable[str] = UVICORN_LOGGERS) -> None:
    """Send every record of this process to standard error in one form; a second call replaces the first.

    `adopt` names loggers that come with handlers of their own: those go, and the records reach ours.
    """
    formatter = (
        _JSONFormatter(service, settings.prompts)
        if settings.format == "json"
        else _TextFormatter(service, settings.prompts)
    )
    handler = _Handler(sys.stderr)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    for old in [old for old in root.handlers if isinstance(old, _Handler)]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(settings.level)
    for name in adopt:
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
        logger.setLevel(logging.NOTSET)
    logging.captureWarnings(True)


class _Handler(logging.StreamHandler[Any]):
    """The handler that `configure` finds again."""


class _Formatter(logging.Formatter):
    def __init__(self, service: str, prompts: bool) -> None:
        super().__init__()
        self._service = service
        self._prompts = prompts

    def fields(self, record: logging.LogRecord) -> dict[str, Any]:
        """Return what `bind` and `extra` put on the record, safe to write."""
        extra = {name: value for name, value in vars(record).items() if name not in _STANDARD}
        return {name: self._safe(name, value) for name, value in {**_context.get(), **extra}.items()}

    def exception(self, record: logging.LogRecord) -> str | None:
        """Return the redacted traceback of the record, if it has one."""
        if record.exc_info and record.exc_info[0] is not None:
            return redact(self.formatException(record.exc_info))
        return redact(record.exc_text) if record.exc_text else None

    def _safe(self, name: str, value: Any) -> Any:
        if name.lower() in SECRET_FIELDS:
            return _MASK
        if not self._prompts and name in PROMPT_FIELDS and value is not None:
            return f"<{len(str(value))} characters>"
        if isinstance(value, Mapping):
            return {str(key): self._safe(str(key), item) for key, item in value.items()}
        if isinstance(value, list | tuple | set | frozenset):
            return [self._safe("", item) for item in value]
        if isinstance(value, float) and not math.isfinite(value):
            return str(value)  # JSON has no NaN
        if value is None or isinstance(value, bool | int | float):
            return value
        return redact(str(value))


class _JSONFormatter(_Formatter):
    def format(self, record: logging.LogRecord) -> str:
        """Return one line of JSON."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "service": self._service,
            "logger": record.name,
            "message": redact(record.getMessage()),
        }
        fields = self.fields(record)
        # A field never takes the place of what the record itself says.
        line |= {(f"extra_{name}" if name in line else name): value for name, value in fields.items()}
        traceback = self.exception(record)
        if traceback is not None:
            line["exception"] = traceback
        return _encodable(json.dumps(line, ensure_ascii=False))


class _TextFormatter(_Formatter):
    def format(self, record: logging.LogRecord) -> str:
        """Return one line for people, and the traceback below it."""
        time = datetime.fromtimestamp(record.created).strftime("%H:%M:%S.%f")[:-3]
        line = f"{time} {record.levelname:<7} {self._service} {record.name}: {redact(record.getMessage())}"
        for name, value in self.fields(record).items():
            line += f" {name}={value}"
        # What came from outside cannot start a line of its own.
        line = _encodable(_CONTROL.sub(lambda match: repr(match[0])[1:-1], line))
        traceback = self.exception(record)
        return line if traceback is None else f"{line}\n{traceback}"


def _encodable(text: str) -> str:
    """Return the text with half surrogate pairs, which UTF-8 cannot hold, as `\\udXXX` (also what JSON calls them)."""
    return text.encode("utf-8", "backslashreplace").decode()
