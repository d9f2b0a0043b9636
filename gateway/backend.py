"""What the routes work with, opened at start-up and closed at the end."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field, replace

from starlette.requests import Request

from gateway.callers import Caller, Callers, open_callers
from gateway.decoder import Decoder
from gateway.drain import Drain
from gateway.fleet import Fleet
from gateway.openai.language_models import LanguageModels
from gateway.pictures import Pictures
from gateway.tasks import background
from gateway.webhooks.deliverer import Deliverer
from shared.artifacts import ArtifactStore, open_store
from shared.jobs import EventFollower, JobQueue, check_server, connect
from shared.sessions import SessionStore
from shared.settings import Settings


@dataclass(frozen=True, slots=True)
class Backend:
    """The queue, its events, its workers, the pictures, the sessions, the way to the language models, and for whom:
    `caller` is that of the request."""

    settings: Settings
    queue: JobQueue
    follower: EventFollower
    artifacts: ArtifactStore
    pictures: Pictures
    fleet: Fleet
    drain: Drain
    language_models: LanguageModels
    callers: Callers
    sessions: SessionStore
    caller: Caller = field(default_factory=Caller)


@asynccontextmanager
async def open_backend(settings: Settings, drain: Drain) -> AsyncIterator[Backend]:
    """Connect to the queue's server, check that it can be trusted with jobs, and start looking after the queue.

    Raises:
        QueueUnavailable: the server did not answer in time.
        UnfitServer: it could lose accepted jobs.
        SettingsError: the file of API keys cannot be used.
    """
    callers = open_callers(settings)
    decoder = Decoder()
    redis = await connect(settings.redis)
    try:
        await check_server(redis, settings.redis)
        queue = JobQueue(redis, settings.queue, settings.redis.namespace)
        follower = EventFollower(redis, queue)
        artifacts = open_store(settings)
        fleet = Fleet(queue, artifacts)
        await fleet.look_again()
        webhooks = Deliverer(queue, settings.webhooks)
        async with (
            aclosing(follower),
            aclosing(LanguageModels(settings.gateway.max_chats)) as language_models,
            background(fleet.beat(), fleet.tend(), fleet.sweep(), callers.tend(), webhooks.tend()),
        ):
            pictures = Pictures(artifacts, decoder)
            sessions = SessionStore(queue, settings)
            yield Backend(
                settings, queue, follower, artifacts, pictures, fleet, drain, language_models, callers, sessions
            )
    finally:
        await asyncio.to_thread(decoder.close)
        await redis.aclose()


def backend_of(request: Request) -> Backend:
    """Return the backend of the app that serves this request, for the request's caller."""
    backend: Backend = request.app.state.backend
    caller: Caller | None = request.scope.get("caller")  # probes have none
    return backend if caller is None else replace(backend, caller=caller)


def answering_backend_of(request: Request) -> Backend:
    """Return the backend for a call that needs the queue's server.

    Raises:
        QueueUnavailable: the server has not answered for a while.
    """
    backend = backend_of(request)
    backend.fleet.check()
    return backend
