"""The client against a real gateway in this process, with small workers behind the real queue."""

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator, Iterator

import pytest

from clients.client import Client
from clients.errors import ServerProblem, UnexpectedAnswer, Unreachable
from shared.contracts import Event, EventType, GenerationRequest, JobStatus, Task
from tests.gateway.conftest import House, until
from tests.gateway.pictures import file_of, pixels_of

PICTURE = file_of(pixels_of())
REQUEST = GenerationRequest(instruction="a red house", seed=3, n=2)


@pytest.fixture
def client(house: House) -> Iterator[Client]:
    with Client(house.url) as client:
        yield client


@pytest.fixture
async def relay(house: House) -> AsyncIterator["Relay"]:
    relay = Relay(house.server.port)
    async with relay.running():
        yield relay


class Relay:
    """A TCP relay before the gateway, whose connections a test can cut."""

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self._writers: set[asyncio.StreamWriter] = set()
        self.port = 0
        self.accepted = 0

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield
        finally:
            server.close()
            self.cut()
            await server.wait_closed()

    def cut(self) -> None:
        """Cut every connection at once."""
        for writer in self._writers:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        there, here = await asyncio.open_connection("127.0.0.1", self._target_port)
        both = {writer, here}
        self._writers |= both
        try:
            await asyncio.gather(_pump(reader, here), _pump(there, writer), return_exceptions=True)
        finally:
            self._writers -= both
            for each in both:
                each.transport.abort()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65_536):
        writer.write(data)
        await writer.drain()
    writer.close()


async def test_a_job_is_followed_to_its_pictures(client: Client, house: House) -> None:
    job = await asyncio.to_thread(client.submit, REQUEST)
    events = await asyncio.to_thread(lambda: list(client.events(job.id)))
    assert events[0].type is EventType.QUEUED
    assert events[-1].type is EventType.SUCCEEDED
    job = await asyncio.to_thread(client.get, job.id)
    assert job.status is JobStatus.SUCCEEDED
    assert [image.seed for image in job.images] == [3, 4]
    for image in job.images:
        data = await asyncio.to_thread(client.image, image.id)
        assert hashlib.sha256(data).hexdigest() == image.sha256


async def test_events_go_on_after_a_cut_connection_without_a_gap_or_a_repetition(house: House, relay: Relay) -> None:
    house.render.gate.clear()
    seen: list[Event] = []
    with Client(f"http://127.0.0.1:{relay.port}") as client:
        job = await asyncio.to_thread(client.submit, REQUEST)
        following = asyncio.create_task(asyncio.to_thread(_follow, client, job.id, seen))
        await until(lambda: any(event.type is EventType.PROMPT_COMPLETED for event in seen))
        before = relay.accepted
        relay.cut()
        await until(lambda: relay.accepted > before)
        house.render.gate.set()
        await following
        everything = await asyncio.to_thread(lambda: list(client.events(job.id)))
    assert seen == everything


def _follow(client: Client, job_id: str, seen: list[Event]) -> None:
    for event in client.events(job_id):
        seen.append(event)


async def test_following_from_an_event_on_gives_only_what_came_after_it(client: Client) -> None:
    job = await asyncio.to_thread(client.submit, REQUEST)
    everything = await asyncio.to_thread(lambda: list(client.events(job.id)))
    rest = await asyncio.to_thread(lambda: list(client.events(job.id, after=everything[2].id)))
    assert rest == everything[3:]


async def test_wait_returns_the_finished_job(client: Client) -> None:
    job = await asyncio.to_thread(client.submit, REQUEST)
    assert (await asyncio.to_thread(client.wait, job.id)).status is JobStatus.SUCCEEDED
    assert (await asyncio.to_thread(client.wait, job.id)).status is JobStatus.SUCCEEDED


async def test_a_canceled_job_ends_its_events(client: Client, house: House) -> None:
    house.render.gate.clear()
    job = await asyncio.to_thread(client.submit, REQUEST)
    canceled = await asyncio.to_thread(client.cancel, job.id)
    assert canceled.status is JobStatus.CANCELED
    events = await asyncio.to_thread(lambda: list(client.events(job.id)))
    assert events[-1].type is EventType.CANCELED


async def test_a_held_job_is_approved_with_an_edited_prompt(client: Client) -> None:
    request = GenerationRequest(instruction="a red house", approve=True)
    job = await asyncio.to_thread(client.submit, request)
    for event in await asyncio.to_thread(lambda: _until_held(client, job.id)):
        assert not event.type.ends_stream
    await asyncio.to_thread(lambda: client.approve(job.id, prompt="a blue house"))
    job = await asyncio.to_thread(client.wait, job.id)
    assert job.prompt is not None
    assert (job.prompt.text, job.prompt.source) == ("a blue house", "edited")


def _until_held(client: Client, job_id: str) -> list[Event]:
    events = []
    for event in client.events(job_id):
        events.append(event)
        if event.type is EventType.AWAITING_APPROVAL:
            break
    return events


async def test_jobs_are_listed_over_all_pages(client: Client) -> None:
    jobs = [await asyncio.to_thread(client.submit, REQUEST) for _ in range(5)]
    for job in jobs:
        await asyncio.to_thread(client.wait, job.id)
    listed = await asyncio.to_thread(lambda: list(client.jobs(per_page=2)))
    assert [job.id for job in listed] == [job.id for job in reversed(jobs)]
    succeeded = await asyncio.to_thread(lambda: list(client.jobs(status=JobStatus.SUCCEEDED, per_page=2)))
    assert [job.id for job in succeeded] == [job.id for job in listed]
    assert await asyncio.to_thread(lambda: list(client.jobs(task=Task.PROMPT))) == []


async def test_the_same_key_gives_the_same_job(client: Client) -> None:
    first = await asyncio.to_thread(lambda: client.submit(REQUEST, idempotency_key="k-1"))
    second = await asyncio.to_thread(lambda: client.submit(REQUEST, idempotency_key="k-1"))
    assert first.id == second.id
    await asyncio.to_thread(client.wait, first.id)


async def test_a_refusal_carries_the_problem(client: Client) -> None:
    request = GenerationRequest(instruction="a red house", model="nobody-serves-it")
    with pytest.raises(ServerProblem) as caught:
        await asyncio.to_thread(client.submit, request)
    assert caught.value.problem.code == "model_not_served"
    assert caught.value.problem.served_models == ["painter"]


async def test_an_unknown_job_is_a_problem_for_every_call(client: Client) -> None:
    for call in (client.get, client.cancel, client.approve, lambda job: list(client.events(job)), client.image):
        with pytest.raises(ServerProblem) as caught:
            await asyncio.to_thread(call, "job_nothing")
        assert caught.value.problem.code == "not_found"


async def test_models_and_readiness_are_those_of_the_gateway(client: Client) -> None:
    models = await asyncio.to_thread(client.models)
    assert {model["id"] for model in models} == {"painter", "writer"}
    is_ready, details = await asyncio.to_thread(client.readiness)
    assert is_ready
    assert details["status"] == "ready"


async def test_a_server_that_is_not_there_is_unreachable() -> None:
    with Client("http://127.0.0.1:1", patience_s=0.2) as client:
        for call in (client.get, lambda job_id: list(client.events(job_id))):
            with pytest.raises(Unreachable, match=r"http://127\.0\.0\.1:1"):
                await asyncio.to_thread(call, "job_1")


async def test_a_stranger_behind_the_url_is_not_taken_for_the_gateway() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        with Client(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}") as client:
            with pytest.raises(UnexpectedAnswer, match="HTTP 200"):
                await asyncio.to_thread(client.get, "job_1")
            with pytest.raises(UnexpectedAnswer):
                await asyncio.to_thread(client.readiness)


async def test_an_uploaded_picture_can_be_named_in_a_request(client: Client, house: House) -> None:
    kept = await asyncio.to_thread(client.upload, PICTURE)
    assert (kept.width, kept.height) == (24, 16)
    request = GenerationRequest.model_validate({"task": "similar", "image": kept.id})
    job = await asyncio.to_thread(client.submit, request)
    assert (await asyncio.to_thread(client.wait, job.id)).status is JobStatus.SUCCEEDED


async def test_a_file_that_is_no_picture_is_a_problem(client: Client, house: House) -> None:
    with pytest.raises(ServerProblem) as caught:
        await asyncio.to_thread(client.upload, b"GIF89a")
    assert caught.value.problem.code == "invalid_image"
