"""Web pages of other origins (Fetch standard §3.2): whom the operator named may call and read, nobody else.

Nothing here depends on cookies, so credentials are not allowed: a page sends its key itself.
"""

from collections.abc import Collection

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

ANY = "*"
MAX_AGE_S = 600  # browsers keep no preflight much longer
METHODS = "DELETE, GET, HEAD, POST"
REQUEST_HEADERS = "Authorization, Content-Type, Idempotency-Key, If-None-Match, Last-Event-ID, Prefer, X-Request-Id"
RESPONSE_HEADERS = (
    "ETag, Idempotency-Replayed, Location, Preference-Applied, RateLimit, RateLimit-Policy, Retry-After, "
    "WWW-Authenticate, X-Request-Id"
)


class Cors:
    """ASGI middleware that answers preflights, and lets pages of the allowed origins read the answers."""

    def __init__(self, app: ASGIApp, origins: Collection[str]) -> None:
        self._app = app
        self._origins = origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        headers = Headers(scope=scope) if scope["type"] == "http" else Headers()
        origin = headers.get("origin", "")
        if not origin or not {origin, ANY} & set(self._origins):
            await self._app(scope, receive, send)  # a browser keeps the answer from the page
            return
        if scope["method"] == "OPTIONS" and "access-control-request-method" in headers:
            preflight = {
                "Access-Control-Allow-Origin": origin,
                "Access-Control-Allow-Methods": METHODS,
                "Access-Control-Allow-Headers": REQUEST_HEADERS,
                "Access-Control-Max-Age": str(MAX_AGE_S),
                "Vary": "Origin",
            }
            await Response(status_code=204, headers=preflight)(scope, receive, send)
            return

        async def send_readable(message: Message) -> None:
            if message["type"] == "http.response.start":
                answer = MutableHeaders(raw=message.setdefault("headers", []))
                answer["Access-Control-Allow-Origin"] = origin
                answer["Access-Control-Expose-Headers"] = RESPONSE_HEADERS
                answer.add_vary_header("Origin")
            await send(message)

        await self._app(scope, receive, send_readable)
