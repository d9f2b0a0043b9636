"""The HTTP server: uvicorn, told how to end.

On SIGTERM or SIGINT it stops accepting, lets running calls end, gives streams and waiting calls a short grace, and
is done.
"""

import asyncio
import logging
import signal
import socket
from collections.abc import Generator
from contextlib import contextmanager

import uvicorn
from starlette.types import ASGIApp

from gateway.answers import Readiness
from gateway.app import create_app
from gateway.backend import Backend
from gateway.drain import Drain
from shared.settings import GatewaySettings, Settings
from shared.status import StatusServer, serve_status

SHUTDOWN_S = 10  # for calls that are neither streams nor waiting; after the grace of those
KEEP_ALIVE_S = 65  # proxies keep a connection for 60 s, and must never write into a closed one
BACKLOG = 2_048

_log = logging.getLogger("llmga.gateway")


class StartError(Exception):
    """The gateway could not start."""

    def __init__(self, cause: Exception | None, message: str) -> None:
        super().__init__(message)
        self.cause = cause


def uvicorn_config(app: ASGIApp, settings: GatewaySettings) -> uvicorn.Config:
    """Return how uvicorn serves the gateway, and whatever is measured beside it."""
    return uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        loop="uvloop",
        http="httptools",
        ws="none",
        lifespan="on",
        interface="asgi3",
        log_config=None,  # shared.logs has adopted its loggers
        access_log=False,  # metrics count requests
        server_header=False,
        proxy_headers=False,  # nothing here depends on who the client says it is
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=SHUTDOWN_S,
    )


class GatewayServer(uvicorn.Server):
    """A uvicorn server of one gateway, with its metrics port."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._drain = Drain()
        self.app = create_app(settings, self._drain)
        super().__init__(uvicorn_config(self.app, settings.gateway))
        self._status: StatusServer | None = None

    @property
    def backend(self) -> Backend:
        """What the app works with; there once the server has started."""
        backend: Backend = self.app.state.backend
        return backend

    @property
    def port(self) -> int:
        """The port in use."""
        port: int = self.servers[0].sockets[0].getsockname()[1]
        return port

    @property
    def metrics_port(self) -> int | None:
        """The metrics port in use, if there is one."""
        return None if self._status is None else self._status.port

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start the app, the listening sockets and the metrics port.

        Raises:
            StartError: one of them could not be started.
        """
        gateway, host = self._settings.gateway, self._settings.metrics_host
        try:
            await super().startup(sockets)
        except SystemExit:  # uvicorn's way to say so, after it has logged the reason
            cause = self.app.state.start_failure
            message = f"the gateway cannot listen on {gateway.host}:{gateway.port}" if cause is None else str(cause)
            raise StartError(cause, message) from None
        if gateway.metrics_port:
            try:
                self._status = serve_status(gateway.metrics_port, live=self._is_live, ready=self._is_ready, host=host)
            except OSError as error:
                await super().shutdown(sockets)
                raise StartError(error, f"the metrics port cannot listen on {host}:{gateway.metrics_port}") from error

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to drain, then end as uvicorn does."""
        self._drain.begin()
        await super().shutdown(sockets)
        if self._status is not None:
            await asyncio.to_thread(self._status.close)

    def _is_live(self) -> bool:
        return self.backend.fleet.is_alive

    def _is_ready(self) -> tuple[bool, dict[str, object]]:
        readiness = Readiness.of(self.backend.fleet.view, draining=self._drain.begun, verbose=True)
        return readiness.status == "ready", readiness.model_dump(mode="json", exclude_none=True, exclude={"status"})

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Leave signals to `run`: uvicorn raises them again when all is done, and so ends with a failure."""
        yield


async def run(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT, then drain.

    Raises:
        StartError: the gateway could not start.
    """
    server = GatewayServer(settings)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, server.handle_exit, number, None)
    await server.serve()
