"""HTTP on the wire: uvicorn's protocol, with bounds on the head of a request, and with refusals of our own.

The parser takes heads of any length, and a connection may take for ever to send one; both are refused here, before
anybody knows who it is that asks.
"""

import asyncio
import os
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from gateway.edge import SECURITY_HEADERS
from gateway.problems import MEDIA_TYPE
from shared.errors import HeadTooLarge, LLMGAError, MalformedHTTP

MAX_HEAD_BYTES = 65_536  # four times what other servers take, and one piece from the socket
HEAD_S = 20.0  # from the first byte, or from the connection


class BoundedHttp(HttpToolsProtocol):
    """One connection."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._head_bytes = 0
        self._has_head = False
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """Begin with a connection, which should say soon what it is for."""
        super().connection_made(transport)
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """End with it."""
        self._expect_nothing()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take what came; more of a head than there may be is refused."""
        if not self._has_head:
            self._head_bytes += len(data)
            if self._deadline is None:
                self._expect_head()
            if self._head_bytes > MAX_HEAD_BYTES + len(data):  # what came last may hold a body
                self._refuse(HeadTooLarge(f"The head of the request is larger than {MAX_HEAD_BYTES:,} bytes."))
                return
        super().data_received(data)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header."""
        if len(name) + len(value) > MAX_HEAD_BYTES:
            raise ValueError("header too long")
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Start with the request."""
        self._has_head = True
        self._expect_nothing()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Be ready for the next request."""
        self._has_head = False
        self._head_bytes = 0
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP."""
        self._refuse(MalformedHTTP("What came is not an HTTP request."))

    def _refuse(self, error: LLMGAError) -> None:
        request_id = f"req_{os.urandom(12).hex()}"
        body = error.to_problem(f"urn:llmga:request:{request_id}").model_dump_json(exclude_none=True).encode()
        headers = {
            "Content-Type": MEDIA_TYPE,
            "Content-Length": str(len(body)),
            "Connection": "close",
            "X-Request-Id": request_id,
            **dict(SECURITY_HEADERS),
        }
        head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        self.transport.write(STATUS_LINE[error.status] + head.encode() + b"\r\n" + body)
        self.transport.close()

    def _expect_head(self) -> None:
        self._deadline = self.loop.call_later(HEAD_S, self.transport.close)

    def _expect_nothing(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
