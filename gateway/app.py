"""The application: layers, routes, and what is opened and closed with them."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import PackageNotFoundError, version

from fastapi import FastAPI
from starlette.responses import Response

from gateway import openapi, problems
from gateway.authentication import Authentication
from gateway.backend import open_backend
from gateway.body_limit import BodyBudget, BodyLimit
from gateway.cors import Cors
from gateway.drain import Drain
from gateway.edge import Edge
from gateway.openai import chat
from gateway.openai import images as openai_images
from gateway.routes import generations, health, images, jobs, models, sessions, webhooks
from shared.settings import Settings


def create_app(settings: Settings, drain: Drain | None = None) -> FastAPI:
    """Return the gateway's app; nothing is opened before its lifespan starts.

    `drain` is begun by whoever ends the process, so that streams end in time.
    """
    draining = drain or Drain()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with open_backend(settings, draining) as backend:
            app.state.backend = backend
            yield

    app = FastAPI(
        title="LLMGA Serve",
        version=_version(),
        lifespan=lifespan,
        default_response_class=Response,
        docs_url=None,  # the interactive pages load scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
    )
    problems.install(app)
    openapi.install(app)
    # OpenAI's paths lie below `/v1/images/` and go before its ids.
    for room in (generations, jobs, sessions, openai_images, images, models, webhooks, chat, health):
        app.include_router(room.router)
    max_body_bytes = settings.gateway.max_body_bytes
    budget = BodyBudget(max(max_body_bytes, settings.gateway.max_held_body_bytes))
    app.add_middleware(BodyLimit, max_bytes=max_body_bytes, budget=budget)
    app.add_middleware(Authentication)
    if settings.gateway.allowed_origins:
        app.add_middleware(Cors, origins=settings.gateway.allowed_origins)
    app.add_middleware(Edge)  # the outermost
    return app


def _version() -> str:
    try:
        return version("llmga-serve")
    except PackageNotFoundError:  # run from a checkout that is not installed
        return "0"
