"""How the launcher learns how a child is: by asking it, never by reading its log."""

import http.client
import json
import re
import socket
from collections.abc import Callable
from dataclasses import dataclass

TIMEOUT_S = 2.0
_WORDS_SHOWN = 60


@dataclass(frozen=True, slots=True)
class Health:
    """What a child says of itself; `detail` is for people."""

    is_ready: bool
    detail: str


Probe = Callable[[], Health]


def status_probe(host: str, port: int) -> Probe:
    """Return a probe of `/readyz?verbose` on a service's status port."""

    def probe() -> Health:
        connection = http.client.HTTPConnection(host, port, timeout=TIMEOUT_S)
        try:
            connection.request("GET", "/readyz?verbose")
            answer = connection.getresponse()
            body = json.loads(answer.read())
        except (OSError, http.client.HTTPException, ValueError):
            return Health(is_ready=False, detail="starting")
        finally:
            connection.close()
        return Health(is_ready=answer.status == http.client.OK, detail=_describe(body))

    return probe


def live_probe(host: str, port: int) -> Probe:
    """Return a probe of `/livez`: ready as soon as it answers, whatever else is still missing."""

    def probe() -> Health:
        connection = http.client.HTTPConnection(host, port, timeout=TIMEOUT_S)
        try:
            connection.request("GET", "/livez")
            is_alive = connection.getresponse().status == http.client.OK
        except (OSError, http.client.HTTPException):
            is_alive = False
        finally:
            connection.close()
        return Health(is_ready=is_alive, detail="ready" if is_alive else "starting")

    return probe


def _describe(body: object) -> str:
    """Return the phase and its detail, from whatever of them the service shows."""
    if not isinstance(body, dict):
        return "starting"
    words = [str(body[key]) for key in ("phase", "detail") if body.get(key)]
    text = ": ".join(words) or str(body.get("status", "starting"))
    return text.replace("_", " ")[:_WORDS_SHOWN]


def valkey_probe(port: int, password: str) -> Probe:
    """Return a probe that sends PING to a Valkey on this machine."""

    def probe() -> Health:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_S) as connection:
                connection.sendall(f"AUTH {password}\r\nPING\r\nQUIT\r\n".encode())
                answer = b"".join(iter(lambda: connection.recv(512), b""))
        except OSError:
            return Health(is_ready=False, detail="starting")
        if re.search(rb"\+PONG", answer):
            return Health(is_ready=True, detail="ready")
        return Health(is_ready=False, detail="loading its data")

    return probe
