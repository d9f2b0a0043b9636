"""What the routes work with, opened at start-up and closed at the end."""

from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass

from starlette.requests import Request

from gateway.drain import Drain
from gateway.fleet import Fleet
from gateway.pictures import Pictures
from gateway.tasks import background
from shared.artifacts import ArtifactStore, open_store
from shared.jobs import EventFollower, JobQueue, check_server, connect
from shared.settings import Settings


@dataclass(frozen=True, slots=True)
class Backend:
    """The queue, its events, its workers, and the pictures."""

    settings: Settings
    queue: JobQueue
    follower: EventFollower
    artifacts: ArtifactStore
    pictures: Pictures
    fleet: Fleet
    drain: Drain


@asynccontextmanager
async def open_backend(settings: Settings, drain: Drain) -> AsyncIterator[Backend]:
    """Connect to the queue's server, check that it can be trusted with jobs, and start looking after the queue.

    Raises:
        QueueUnavailable: the server did not answer in time.
        UnfitServer: it could lose accepted jobs.
    """
    redis = await connect(settings.redis)
    try:
        await check_server(redis, settings.redis)
        queue = JobQueue(redis, settings.queue, settings.redis.namespace)
        follower = EventFollower(redis, queue)
        artifacts = open_store(settings)
        fleet = Fleet(queue, artifacts)
        await fleet.look_again()
        async with aclosing(follower), background(fleet.beat(), fleet.tend(), fleet.sweep()):
            yield Backend(settings, queue, follower, artifacts, Pictures(artifacts), fleet, drain)
    finally:
        await redis.aclose()


def backend_of(request: Request) -> Backend:
    """Return the backend of the app that serves this request."""
    backend: Backend = request.app.state.backend
    return backend


def answering_backend_of(request: Request) -> Backend:
    """Return the backend for a call that needs the queue's server.

    Raises:
        QueueUnavailable: the server has not answered for a while.
    """
    backend = backend_of(request)
    backend.fleet.check()
    return backend
