import http.client
import json
import logging
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from shared import metrics
from shared.status import MAX_CONNECTIONS, StatusServer, serve_status
from tests.processes import until


class Process:
    """What a process says of itself."""

    def __init__(self) -> None:
        self.alive = True
        self.ready = True
        self.details: dict[str, Any] = {"phase": "ready"}
        self.broken = False

    def is_live(self) -> bool:
        if self.broken:
            raise RuntimeError("a library's own words")
        return self.alive

    def is_ready(self) -> tuple[bool, dict[str, Any]]:
        if self.broken:
            raise RuntimeError("a library's own words")
        return self.ready, self.details


@pytest.fixture
def process() -> Process:
    return Process()


@pytest.fixture
def server(process: Process) -> Iterator[StatusServer]:
    with serve_status(0, live=process.is_live, ready=process.is_ready) as server:
        yield server


def ask(server: StatusServer, path: str, method: str = "GET") -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    try:
        connection.request(method, path)
        response = connection.getresponse()
        return response.status, dict(response.getheaders()), response.read()
    finally:
        connection.close()


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("llmga-status")]


def test_port_0_becomes_a_free_port(server: StatusServer) -> None:
    assert server.port > 0


def test_metrics_are_served_in_prometheus_form(server: StatusServer) -> None:
    metrics.SSE_FOLLOWERS.set(3)
    status, headers, body = ask(server, "/metrics")
    metrics.SSE_FOLLOWERS.set(0)
    assert status == 200
    assert headers["Content-Type"].startswith("text/plain")
    assert b"llmga_sse_followers 3.0" in body


@pytest.mark.parametrize(("alive", "status"), [(True, 200), (False, 503)])
def test_livez_says_whether_the_process_makes_progress(
    server: StatusServer, process: Process, alive: bool, status: int
) -> None:
    process.alive = alive
    assert ask(server, "/livez")[0] == status


@pytest.mark.parametrize(("ready", "status"), [(True, 200), (False, 503)])
def test_readyz_says_whether_work_can_be_taken(
    server: StatusServer, process: Process, ready: bool, status: int
) -> None:
    process.ready = ready
    code, headers, body = ask(server, "/readyz")
    assert code == status
    assert headers["Content-Type"] == "application/json"
    assert headers["Cache-Control"] == "no-store"
    assert json.loads(body) == {"status": "ready" if ready else "not_ready"}


@pytest.mark.parametrize("query", ["verbose", "verbose=1", "x=y&verbose"])
def test_readyz_verbose_says_why(server: StatusServer, process: Process, query: str) -> None:
    process.ready, process.details = False, {"phase": "loading", "free": 0}
    assert json.loads(ask(server, f"/readyz?{query}")[2]) == {"status": "not_ready", "phase": "loading", "free": 0}


@pytest.mark.parametrize("path", ["/livez", "/readyz?verbose"])
def test_a_check_that_fails_is_no_green_light_and_keeps_its_words(
    server: StatusServer, process: Process, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    process.broken = True
    status, _, body = ask(server, path)
    assert status == 503
    assert b"library" not in body
    assert "a library's own words" in caplog.text


def test_head_has_no_body(server: StatusServer) -> None:
    status, headers, body = ask(server, "/livez", "HEAD")
    assert (status, body) == (200, b"")
    assert int(headers["Content-Length"]) > 0


@pytest.mark.parametrize(
    ("method", "path", "code"),
    [("GET", "/", 404), ("GET", "/metricsx", 404), ("POST", "/metrics", 405), ("PUT", "/livez", 405)],
)
def test_other_calls_get_a_problem(server: StatusServer, method: str, path: str, code: int) -> None:
    status, headers, body = ask(server, path, method)
    assert status == code
    assert headers["Content-Type"] == "application/problem+json"
    assert json.loads(body)["status"] == code
    assert ("Allow" in headers) == (code == 405)


@pytest.mark.parametrize(
    "noise", [b"", b"\r\n\r\n", b"GET\r\n\r\n", b"\x16\x03\x01\x00" * 9, b"GET /livez HTTP/9.9\r\n\r\n", b"A" * 70_000]
)
def test_noise_on_the_port_harms_nobody(server: StatusServer, noise: bytes) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as client:
        try:
            client.sendall(noise)
            client.shutdown(socket.SHUT_WR)
            client.recv(100)
        except ConnectionError:
            pass  # it hung up first, as it may
    assert ask(server, "/livez")[0] == 200


def test_silent_clients_take_a_bounded_number_of_threads_and_leave(server: StatusServer) -> None:
    clients = [socket.create_connection(("127.0.0.1", server.port), timeout=60) for _ in range(3 * MAX_CONNECTIONS)]
    try:
        until(lambda: threads().count("llmga-status-request") > 0, what="a thread for a client")
        assert threads().count("llmga-status-request") <= MAX_CONNECTIONS
        # Those above the bound are hung up on at once, the rest after the time-out.
        assert all(client.recv(1) == b"" for client in clients)
    finally:
        for client in clients:
            client.close()
    until(lambda: "llmga-status-request" not in threads(), what="the threads' end")
    assert ask(server, "/livez")[0] == 200


def test_close_ends_every_thread_and_frees_the_port(process: Process) -> None:
    server = serve_status(0, live=process.is_live, ready=process.is_ready)
    with socket.create_connection(("127.0.0.1", server.port)):
        until(lambda: "llmga-status-request" in threads(), what="a thread for the client")
        server.close()
    assert threads() == []
    server.close()
    serve_status(server.port, live=process.is_live, ready=process.is_ready).close()


def test_a_taken_port_is_an_os_error(server: StatusServer, process: Process) -> None:
    with pytest.raises(OSError, match="in use"):
        serve_status(server.port, live=process.is_live, ready=process.is_ready)


def test_scrapes_are_not_in_the_log(server: StatusServer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    ask(server, "/metrics")
    assert not [record for record in caplog.records if record.name.startswith("llmga")]


@pytest.mark.skipif(not socket.has_ipv6, reason="this machine has no IPv6")
def test_ipv6_addresses_can_be_listened_on(process: Process) -> None:
    try:
        server = serve_status(0, live=process.is_live, ready=process.is_ready, host="::1")
    except OSError:
        pytest.skip("the loopback device has no IPv6 address")
    with server, socket.create_connection(("::1", server.port)) as client:
        client.sendall(b"GET /livez HTTP/1.0\r\n\r\n")
        assert b" 200 " in client.recv(100)
