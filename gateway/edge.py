"""The outermost layer: request ids, security headers, request metrics, and the last word on unexpected exceptions."""

import logging
import os
import re
import time

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.problems import error_response
from shared import metrics
from shared.errors import InternalError
from shared.logs import bind

SECURITY_HEADERS = (
    ("X-Content-Type-Options", "nosniff"),
    ("X-Frame-Options", "DENY"),
    ("Referrer-Policy", "no-referrer"),
    # Nothing that is served here loads anything or may be framed, not even a picture opened as a page.
    ("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'"),
)

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_METHODS = frozenset({"DELETE", "GET", "HEAD", "POST"})  # those of our routes; label values are bounded

_log = logging.getLogger("llmga.gateway")


class Edge:
    """ASGI middleware around everything else."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request with an id, and answer whatever goes wrong in it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else f"req_{os.urandom(12).hex()}"
        scope["request_id"] = request_id
        status = 0
        is_stream = False

        async def send_with_headers(message: Message) -> None:
            nonlocal status, is_stream
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(raw=message.setdefault("headers", []))
                headers["X-Request-Id"] = request_id
                for name, value in SECURITY_HEADERS:
                    headers[name] = value
                is_stream = headers.get("content-type", "").startswith("text/event-stream")
            await send(message)

        with bind(request_id=request_id):
            try:
                await self._app(scope, receive, send_with_headers)
            except Exception:
                _log.exception("unexpected exception")
                if status == 0:
                    error = InternalError("Something unexpected happened while this request was served.")
                    await error_response(error, scope)(scope, receive, send_with_headers)
                # Otherwise the answer is cut off, and the server closes the connection.
            finally:
                if status:
                    _count(scope, status, None if is_stream else time.perf_counter() - started)


def _count(scope: Scope, status: int, seconds: float | None) -> None:
    route = getattr(scope.get("route"), "path", "other")
    method = scope["method"] if scope["method"] in _METHODS else "other"
    metrics.HTTP_REQUESTS.labels(method, route, str(status)).inc()
    if seconds is not None:
        metrics.HTTP_SECONDS.labels(method, route).observe(seconds)
