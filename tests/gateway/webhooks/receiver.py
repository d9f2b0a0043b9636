"""A real server that receives webhooks."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable, Generator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from starlette.types import Receive, Scope, Send

from tests.gateway.conftest import until
from tests.ports import listening


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Leave signals to the test run."""
        yield


@dataclass
class Received:
    """One request, and the headers it came with."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def message(self) -> dict[str, Any]:
        """The body as JSON."""
        return dict(json.loads(self.body))


@dataclass
class Receiver:
    """Answers with these statuses, one after the other, the last one from then on; 0: never."""

    statuses: list[int] = field(default_factory=lambda: [204])
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    body: Callable[[], AsyncIterator[bytes]] | None = None
    received: list[Received] = field(default_factory=list)
    port: int = 0
    listening: socket.socket | None = None

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}/hook"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Take one request."""
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        self.received.append(Received(scope["path"], headers, body))
        status = self.statuses[min(len(self.received), len(self.statuses)) - 1]
        if status == 0:
            while (await receive())["type"] != "http.disconnect":
                pass
            return
        await send({"type": "http.response.start", "status": status, "headers": self.headers})
        if self.body is not None:
            async for chunk in self.body():
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    def listen(self) -> socket.socket:
        """Take a port, if it has none yet."""
        if self.listening is None:
            self.listening = listening()
            self.port = self.listening.getsockname()[1]
        return self.listening

    @asynccontextmanager
    async def serving(self) -> AsyncIterator["Receiver"]:
        """Answer while the block runs."""
        server = _Server(uvicorn.Config(self, lifespan="off", log_config=None))
        task = asyncio.create_task(server.serve(sockets=[self.listen()]))
        try:
            await until(lambda: server.started)
            yield self
        finally:
            server.should_exit = server.force_exit = True
            await task
