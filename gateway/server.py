"""The HTTP server: uvicorn, told how to end.

On SIGTERM or SIGINT it stops accepting, lets running calls end, gives streams and waiting calls a short grace, and
is done.
"""

import asyncio
import logging
import signal
import socket
from collections.abc import Generator
from contextlib import AsyncExitStack, contextmanager, suppress

import uvicorn
from starlette.types import ASGIApp

from gateway.answers import Readiness
from gateway.app import create_app
from gateway.backend import Backend
from gateway.drain import Drain
from gateway.protocol import BoundedHttp
from shared.errors import LLMGAError
from shared.jobs import UnfitServer
from shared.settings import GatewaySettings, Settings, SettingsError
from shared.status import serve_status

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
        http=BoundedHttp,
        ws="none",
        lifespan="off",  # the server opens the app itself, so that what goes wrong is raised, not logged
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
        self._opened = AsyncExitStack()

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

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Open the app, the metrics port and the listening sockets.

        Raises:
            StartError: one of them could not be opened; nothing is left open.
        """
        try:
            await self._open(sockets)
        except BaseException:
            await self._opened.aclose()
            raise

    async def _open(self, sockets: list[socket.socket] | None) -> None:
        gateway, metrics_host = self._settings.gateway, self._settings.metrics_host
        try:
            await self._opened.enter_async_context(self.app.router.lifespan_context(self.app))
        except (SettingsError, UnfitServer, LLMGAError) as error:
            raise StartError(error, str(error)) from error
        if gateway.metrics_port:
            try:
                status = serve_status(gateway.metrics_port, live=self._is_live, ready=self._is_ready, host=metrics_host)
            except OSError as error:
                message = f"the metrics port cannot listen on {metrics_host}:{gateway.metrics_port}"
                raise StartError(error, message) from error
            self._opened.push_async_callback(asyncio.to_thread, status.close)
        try:
            await super().startup(sockets)
        except SystemExit:  # uvicorn's way to say that it cannot listen
            raise StartError(None, f"the gateway cannot listen on {gateway.host}:{gateway.port}") from None

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to drain, end as uvicorn does, and close what was opened."""
        self._drain.begin()
        await super().shutdown(sockets)
        await self._opened.aclose()

    def _is_live(self) -> bool:
        return self.backend.fleet.is_alive

    def _is_ready(self) -> tuple[bool, dict[str, object]]:
        view, mode = self.backend.fleet.view, self._settings.auth.mode
        readiness = Readiness.of(view, draining=self._drain.begun, verbose=True, authentication=mode)
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
    serving = asyncio.create_task(server.serve())

    def stop(number: signal.Signals) -> None:
        if server.started:
            server.handle_exit(number, None)
        else:  # for example, it still waits for the queue's server
            serving.cancel()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop, number)
    with suppress(asyncio.CancelledError):
        await serving
