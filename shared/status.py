"""The port for machines that watch a process: `/metrics`, `/livez` and `/readyz`.

It runs in daemon threads on the standard library alone, so that it answers while an event loop or a device
is busy. Connections are few and short: at most `MAX_CONNECTIONS` are served at once, what comes above that
is closed, and a silent one is dropped after `TIMEOUT_S`.
"""

import json
import logging
import socket
import threading
from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import Any, TypeVar
from urllib.parse import parse_qs
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer
from wsgiref.types import StartResponse, WSGIEnvironment

from prometheus_client import make_wsgi_app

from shared.errors import LLMGAError, MethodNotAllowed, NotFound
from shared.metrics import REGISTRY

MAX_CONNECTIONS = 8  # Prometheus, a probe or two, and a person
TIMEOUT_S = 5.0

_log = logging.getLogger("llmga.status")

Live = Callable[[], bool]
Ready = Callable[[], tuple[bool, dict[str, Any]]]
Answer = TypeVar("Answer")


class StatusServer:
    """A running status port; `port` is the real one when 0 was asked for."""

    def __init__(self, server: "_Server") -> None:
        self._server = server
        self.port: int = server.server_address[1]
        self._thread = threading.Thread(
            target=server.serve_forever, kwargs={"poll_interval": 0.1}, name="llmga-status", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Stop listening, end what is being served, and return when all threads are gone; idempotent."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()

    def __enter__(self) -> "StatusServer":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def serve_status(port: int, *, live: Live, ready: Ready, host: str = "127.0.0.1") -> StatusServer:
    """Serve `/metrics`, `/livez` and `/readyz` on `host:port` from threads of their own.

    `live` says whether the process makes progress; `ready` whether it can take work, with what
    `/readyz?verbose` shows beside. Both are called from other threads and must be quick.

    Raises:
        OSError: the port is taken.
    """
    server = _Server(host, port)
    server.set_app(_App(live, ready))
    return StatusServer(server)


class _App:
    def __init__(self, live: Live, ready: Ready) -> None:
        self._live = live
        self._ready = ready
        self._metrics = make_wsgi_app(REGISTRY)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "/")
        if path not in {"/metrics", "/livez", "/readyz"}:
            return _problem(start_response, NotFound("This port serves /metrics, /livez and /readyz."))
        if environ["REQUEST_METHOD"] not in {"GET", "HEAD"}:
            error = MethodNotAllowed("Only GET and HEAD are served here.")
            return _problem(start_response, error, ("Allow", "GET, HEAD"))
        if path == "/metrics":
            samples: Iterable[bytes] = self._metrics(environ, start_response)
            return samples
        if path == "/livez":
            is_alive = _ask(self._live, otherwise=False)
            return _verdict(start_response, is_alive, {"status": "alive" if is_alive else "stuck"})
        failed: dict[str, Any] = {"reason": "the readiness check failed"}
        is_ready, details = _ask(self._ready, otherwise=(False, failed))
        body: dict[str, Any] = {"status": "ready" if is_ready else "not_ready"}
        if "verbose" in parse_qs(environ.get("QUERY_STRING", ""), keep_blank_values=True):
            body |= details
        return _verdict(start_response, is_ready, body)


def _ask(check: Callable[[], Answer], *, otherwise: Answer) -> Answer:
    try:
        return check()
    except Exception:
        _log.exception("a status check failed")
        return otherwise


def _verdict(start_response: StartResponse, is_good: bool, body: dict[str, Any]) -> list[bytes]:
    status = HTTPStatus.OK if is_good else HTTPStatus.SERVICE_UNAVAILABLE
    return _respond(start_response, status, "application/json", json.dumps(body, default=str))


def _problem(start_response: StartResponse, error: LLMGAError, *headers: tuple[str, str]) -> list[bytes]:
    body = error.to_problem().model_dump_json(exclude_none=True)
    return _respond(start_response, HTTPStatus(error.status), "application/problem+json", body, *headers)


def _respond(
    start_response: StartResponse, status: HTTPStatus, media_type: str, body: str, *headers: tuple[str, str]
) -> list[bytes]:
    content = body.encode()
    fixed = [
        ("Content-Type", media_type),
        ("Content-Length", str(len(content))),
        ("Cache-Control", "no-store"),
    ]
    start_response(f"{status.value} {status.phrase}", [*fixed, *headers])
    return [content]


class _Handler(WSGIRequestHandler):
    timeout = TIMEOUT_S

    def handle(self) -> None:
        """Serve the request; a client that left or fell silent is nobody's fault."""
        try:
            super().handle()
        except (ConnectionError, TimeoutError):
            self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        """Leave scrapes and probes out of the log at its usual level."""
        _log.debug(format, *args)


class _Server(WSGIServer):
    """A WSGI server with a bounded number of threads, all of which end when it is closed."""

    allow_reuse_address = True

    def __init__(self, host: str, port: int) -> None:
        if ":" in host:
            self.address_family = socket.AF_INET6
        self._slots = threading.BoundedSemaphore(MAX_CONNECTIONS)
        self._lock = threading.Lock()
        self._open: dict[socket.socket, threading.Thread] = {}
        super().__init__((host, port), _Handler)

    def server_bind(self) -> None:
        """Bind without a reverse look-up of the host's name, which takes seconds where there is no DNS."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
        self.setup_environ()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve the connection from a thread of its own, or close it when all are busy."""
        if not self._slots.acquire(blocking=False):
            self.shutdown_request(request)
            return
        thread = threading.Thread(
            target=self._serve, args=(request, client_address), name="llmga-status-request", daemon=True
        )
        with self._lock:
            self._open[request] = thread
        thread.start()

    def _serve(self, request: socket.socket, client_address: Any) -> None:
        try:
            self.finish_request(request, client_address)
        except Exception:
            _log.exception("a status request failed")
        finally:
            with self._lock:
                self._open.pop(request, None)
            self.shutdown_request(request)
            self._slots.release()

    def server_close(self) -> None:
        """Close the listening socket and every connection, and wait for their threads."""
        super().server_close()
        with self._lock:
            left = dict(self._open)
        for connection, thread in left.items():
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # it ended by itself meanwhile
            thread.join(TIMEOUT_S)
