"""The door: who does not say who it is goes no further, and nothing of its body is read.

The caller's limits are told here, on the way out: `RateLimit` and `RateLimit-Policy` are on every answer to a request
that was counted against them.
"""

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.callers import Callers
from gateway.limits import limit_headers
from gateway.problems import error_response
from shared.contracts.limits import UNBOUNDED
from shared.errors import Unauthenticated

# For orchestrators and load balancers, which hold no keys; and the description, which says how to get in.
OPEN_PATHS = frozenset({"/livez", "/readyz", "/health", "/openapi.json"})


class Authentication:
    """ASGI middleware that puts the caller into the scope, or answers 401."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Find out who calls, then call the app."""
        if scope["type"] != "http" or scope["path"] in OPEN_PATHS:
            await self._app(scope, receive, send)
            return
        callers: Callers = scope["app"].state.backend.callers
        authorization = Headers(scope=scope).get("authorization")
        try:
            caller = callers.identify(authorization)
        except Unauthenticated as error:
            response = error_response(error, scope)
            # RFC 6750 §3: a request without a key gets no error code, one with a key that is not good does.
            fault = ', error="invalid_token"' if authorization else ""
            response.headers["WWW-Authenticate"] = f'Bearer realm="llmga"{fault}'
            await response(scope, receive, send)
            return
        scope["caller"] = caller

        async def send_with_limits(message: Message) -> None:
            if message["type"] == "http.response.start" and caller.standing != UNBOUNDED:
                headers = MutableHeaders(raw=message.setdefault("headers", []))
                headers.update(limit_headers(caller.limits, caller.standing))
            await send(message)

        await self._app(scope, receive, send_with_limits)
