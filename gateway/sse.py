"""Server-sent events: a job's events on the wire (HTML standard §9.2).

The id of an SSE event is the id of the stream's entry, so a client that reconnects with `Last-Event-ID` gets
exactly what it missed, from this gateway or another. A stream that ends before the job (the gateway drains) says
when to come back.
"""

import json
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from gateway.connection import Ending, while_connected
from gateway.drain import Drain
from shared import metrics
from shared.contracts import Event
from shared.jobs import EventFollower

MEDIA_TYPE = "text/event-stream"
RETRY_MS = 1_000  # a reconnecting client waits this long; a gateway restarts in about that time
PING = b": ping\n\n"

_log = logging.getLogger("llmga.gateway")


def encode(event: Event) -> bytes:
    """Return the event as SSE: `id`, `event` and `data` are those of `Event`."""
    data = json.dumps(event.data, ensure_ascii=False, separators=(",", ":"))
    return f"id: {event.id}\nevent: {event.type}\ndata: {data}\n\n".encode()


async def stream_of(follower: EventFollower, job_id: str, *, after: str, ping_s: float) -> AsyncGenerator[bytes, None]:
    """Yield the job's events after `after`, and a comment after each `ping_s` of silence."""
    yield f"retry: {RETRY_MS}\n\n".encode()
    async with aclosing(follower.follow(job_id, after, idle_s=ping_s)) as events:
        async for event in events:
            yield PING if event is None else encode(event)


class EventStream(Response):
    """A response that lasts as long as its stream and its client.

    A slow reader holds the stream back (one page of events in memory); nobody else waits for it. `farewell` is what a
    client gets that cannot take its stream up again, when this process drains.
    """

    media_type = MEDIA_TYPE
    charset = "utf-8"

    def __init__(
        self,
        stream: AsyncGenerator[bytes, None],
        drain: Drain,
        *,
        headers: Mapping[str, str] | None = None,
        on_disconnect: Callable[[], Awaitable[None]] | None = None,
        farewell: bytes = b"",
    ) -> None:
        # Nginx and its like buffer answers unless they are told not to.
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no", **(headers or {})})
        del self.headers["content-length"]
        self._stream = stream
        self._drain = drain
        self._on_disconnect = on_disconnect
        self._farewell = farewell

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the stream until it ends, the client leaves, or this process drains."""

        async def pump() -> None:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            async with aclosing(self._stream):
                async for chunk in self._stream:
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})

        with metrics.SSE_FOLLOWERS.track_inprogress():
            ending = await while_connected(pump(), receive, self._drain)
        if ending is Ending.DISCONNECTED:
            if self._on_disconnect is not None:
                await self._on_disconnect()
            return
        last = self._farewell if ending is Ending.DRAINED else b""
        await send({"type": "http.response.body", "body": last, "more_body": False})
