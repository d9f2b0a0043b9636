"""Following jobs: live, replayed, slow, through outages."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any, cast

import pytest

from shared.contracts import Event, EventType, Stage
from shared.jobs import EventFollower, JobQueue, connect
from shared.jobs.follower import PAGE_EVENTS, is_event_id
from shared.settings import QueueSettings, RedisSettings
from tests.shared.jobs.steps import (
    PATIENCE_S,
    claim,
    end_lease,
    eventually,
    image,
    prompt,
    submit,
)
from tests.valkey import Server


@pytest.fixture
async def follower(queue: JobQueue) -> AsyncIterator[EventFollower]:
    follower = EventFollower(queue.redis, queue)
    yield follower
    await follower.aclose()


async def collect(follower: EventFollower, job_id: str, after: str = "0-0") -> list[Event]:
    return [event async for event in follower.follow(job_id, after) if event is not None]


@pytest.fixture
def messages_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the regular look at the Stream away, so that a message that gets lost is seen."""
    monkeypatch.setattr("shared.jobs.follower.POLL_S", 3_600.0)


async def waiting_for_next(events: Any) -> asyncio.Task[Event]:
    """Return a task that has found nothing yet and waits for the next event."""
    task = asyncio.create_task(anext(events))
    await asyncio.sleep(0.1)
    assert not task.done()
    return task


async def pubsub_clients(queue: JobQueue) -> int:
    clients = await queue.redis.client_list(_type="pubsub")
    return len(clients)


async def channels(queue: JobQueue) -> list[str]:
    return cast(list[str], await cast(Any, queue.redis).pubsub_channels("*" + queue.scripts.base[1:] + "*"))


@pytest.mark.usefixtures("messages_only")
async def test_waiting_reader_is_told_at_once(queue: JobQueue, follower: EventFollower) -> None:
    await submit(queue, "j1")
    async with aclosing(cast(Any, follower.follow("j1", idle_s=3_600))) as events:
        await anext(events)
        for expected in (EventType.STARTED, EventType.RENDER_PROGRESS, EventType.SUCCEEDED):
            following = await waiting_for_next(events)
            if expected is EventType.STARTED:
                taken = await claim(queue)
            elif expected is EventType.RENDER_PROGRESS:
                await taken.emit(expected, {"index": 0, "step": 1, "total_steps": 1})
            else:
                await taken.finish([])
            assert (await following).type is expected
        async with asyncio.timeout(PATIENCE_S):
            with pytest.raises(StopAsyncIteration):
                await anext(events)


async def test_events_arrive_as_they_happen(queue: JobQueue, follower: EventFollower) -> None:
    await submit(queue, "j1", stage=Stage.PROMPT)
    async with aclosing(cast(Any, follower.follow("j1"))) as events:
        assert (await anext(events)).type is EventType.QUEUED
        writing = await claim(queue, Stage.PROMPT)
        assert (await anext(events)).data == {"stage": "prompt", "attempt": 1, "worker": "worker-1"}
        await writing.emit(EventType.PROMPT_DELTA, {"text": 'ein Schneemann, 雪人 "\n'})
        delta = await anext(events)
        assert (delta.type, delta.job_id) == (EventType.PROMPT_DELTA, "j1")
        assert delta.data == {"text": 'ein Schneemann, 雪人 "\n'}
        await writing.advance(prompt())
        assert (await anext(events)).data == {"prompt": prompt().model_dump()}
        assert (await anext(events)).data == {"stage": "render"}
        await (await claim(queue)).finish([image()])
        assert (await anext(events)).type is EventType.STARTED
        assert (await anext(events)).data == {"images": [image().model_dump()]}
        with pytest.raises(StopAsyncIteration):
            await anext(events)


async def test_replay_after_any_event_misses_nothing(queue: JobQueue, follower: EventFollower) -> None:
    await submit(queue, "j1", stage=Stage.PROMPT)
    writing = await claim(queue, Stage.PROMPT)
    await writing.emit_many([(EventType.PROMPT_DELTA, {"text": str(n)}) for n in range(5)])
    await writing.advance(prompt())
    await (await claim(queue)).finish([image()])
    everything = await collect(follower, "j1")
    assert len({event.id for event in everything}) == len(everything) == 11
    for number, event in enumerate(everything):
        assert await collect(follower, "j1", event.id) == everything[number + 1 :]


async def test_long_stream_is_read_in_pages(queue: JobQueue, follower: EventFollower) -> None:
    await submit(queue, "j1", stage=Stage.PROMPT)
    writing = await claim(queue, Stage.PROMPT)
    count = 2 * PAGE_EVENTS + 7
    await writing.emit_many([(EventType.PROMPT_DELTA, {"text": str(n)}) for n in range(count)])
    await queue.cancel("j1")
    texts = [event.data["text"] for event in await collect(follower, "j1") if event.type is EventType.PROMPT_DELTA]
    assert texts == [str(n) for n in range(count)]


async def test_failed_job_tells_its_problem(queue: JobQueue, follower: EventFollower) -> None:
    await submit(queue, "j1")
    for _ in range(3):
        await claim(queue)
        await end_lease(queue, "j1")
        await queue.reap()
    failed = (await collect(follower, "j1"))[-1]
    job = await queue.get("j1")
    assert job.error is not None
    assert (failed.type, failed.data) == (EventType.FAILED, {"error": job.error.model_dump()})


async def test_silence_is_told(queue: JobQueue, follower: EventFollower) -> None:
    await submit(queue, "j1")
    async with aclosing(cast(Any, follower.follow("j1", idle_s=0.02))) as events:
        assert (await anext(events)).type is EventType.QUEUED
        assert await anext(events) is None
        assert await anext(events) is None
        await queue.cancel("j1")
        rest = [event.type async for event in events if event is not None]
        assert rest == [EventType.CANCELED]


async def test_following_ends_when_the_job_is_gone(queue: JobQueue, follower: EventFollower) -> None:
    assert await collect(follower, "nothing") == []
    await submit(queue, "j1")
    async with aclosing(cast(Any, follower.follow("j1"))) as events:
        assert (await anext(events)).type is EventType.QUEUED
        await queue.cancel("j1")
        await queue.redis.delete(queue.job_key("j1"), queue.events_key("j1"))
        with pytest.raises(StopAsyncIteration):
            await anext(events)


@pytest.mark.usefixtures("messages_only")
async def test_many_followers_share_one_connection_and_leave_nothing(queue: JobQueue, follower: EventFollower) -> None:
    before = await pubsub_clients(queue)  # a worker of an earlier test may still be on its way out
    for number in range(20):
        await submit(queue, f"j{number}")
    following = [asyncio.create_task(collect(follower, f"j{number % 20}")) for number in range(40)]

    async def all_subscribed() -> bool:
        return len(await channels(queue)) == 20

    await eventually(all_subscribed)
    assert await pubsub_clients(queue) <= before + 1
    names = await channels(queue)
    assert dict(await cast(Any, queue.redis).pubsub_numsub(*names)) == dict.fromkeys(names, 1)
    for number in range(20):
        await queue.cancel(f"j{number}")
    for events in await asyncio.gather(*following):
        assert [event.type for event in events] == [EventType.QUEUED, EventType.CANCELED]

    async def none_subscribed() -> bool:
        return await channels(queue) == []

    await eventually(none_subscribed)


@pytest.mark.usefixtures("messages_only")
async def test_follower_that_leaves_and_comes_back_is_told_again(queue: JobQueue, follower: EventFollower) -> None:
    await submit(queue, "other")
    keeping = asyncio.create_task(collect(follower, "other"))  # keeps the connection in use
    await submit(queue, "j1")
    for _ in range(30):
        async with aclosing(cast(Any, follower.follow("j1"))) as events:
            await anext(events)
    async with aclosing(cast(Any, follower.follow("j1"))) as events:
        await anext(events)
        following = await waiting_for_next(events)
        await queue.cancel("j1")
        assert (await following).type is EventType.CANCELED
    await queue.cancel("other")
    await keeping


async def test_events_arrive_without_messages_too(
    queue: JobQueue, redis_settings: RedisSettings, follower: EventFollower
) -> None:
    sources = {name: text.replace("redis.call('PUBLISH',", "tostring(") for name, text in queue.scripts.sources.items()}
    silent = JobQueue(queue.redis, queue.settings, redis_settings.namespace, sources=sources)
    await submit(silent, "j1")
    async with aclosing(cast(Any, follower.follow("j1"))) as events:
        await anext(events)
        following = await waiting_for_next(events)
        await silent.cancel("j1")
        assert (await following).type is EventType.CANCELED


async def rested(follower: EventFollower, job_id: str, *, timeout_s: float) -> bool:
    """Watch a job from now on; return whether it came to rest in time."""
    async with follower.watch(job_id) as watch:
        return await watch.rested(timeout_s=timeout_s)


@pytest.mark.usefixtures("messages_only")
async def test_a_job_is_watched_from_before_it_exists(queue: JobQueue, follower: EventFollower) -> None:
    async with follower.watch("j1") as watch:
        await submit(queue, "j1")
        assert not await watch.rested(timeout_s=0.02, is_new=True)
        await (await claim(queue)).finish([])
        assert await watch.rested(timeout_s=60, is_new=True)


@pytest.mark.usefixtures("messages_only")
async def test_waiting_ends_with_the_job(queue: JobQueue, follower: EventFollower) -> None:
    await submit(queue, "j1")
    assert not await rested(follower, "j1", timeout_s=0.02)
    waiting = asyncio.create_task(rested(follower, "j1", timeout_s=60))
    await (await claim(queue)).finish([])
    assert await waiting
    assert await rested(follower, "j1", timeout_s=60)
    assert await rested(follower, "nothing", timeout_s=60)


async def test_waiting_ends_when_the_client_must_approve(queue: JobQueue, follower: EventFollower) -> None:
    await submit(queue, "j1", stage=Stage.PROMPT, approve=True)
    waiting = asyncio.create_task(rested(follower, "j1", timeout_s=60))
    await (await claim(queue, Stage.PROMPT)).advance(prompt())
    assert await waiting


async def test_follower_that_leaves_at_once_does_not_harm_the_next(queue: JobQueue, follower: EventFollower) -> None:
    await submit(queue, "j1")
    leaving = asyncio.create_task(collect(follower, "j1"))
    await asyncio.sleep(0)
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    await queue.cancel("j1")
    assert [event.type for event in await collect(follower, "j1")] == [EventType.QUEUED, EventType.CANCELED]


@pytest.mark.usefixtures("messages_only")
async def test_follower_goes_on_after_its_connection_was_cut(queue: JobQueue, follower: EventFollower) -> None:
    await submit(queue, "j1")
    following = asyncio.create_task(collect(follower, "j1"))

    async def subscribed() -> bool:
        return len(await channels(queue)) == 1

    for _ in range(3):
        await eventually(subscribed)
        await cast(Any, queue.redis).client_kill_filter(_type="pubsub")
    await eventually(subscribed)
    await queue.cancel("j1")
    assert [event.type for event in await following] == [EventType.QUEUED, EventType.CANCELED]


async def test_follower_rides_out_a_restart_of_the_server(start_server: Callable[..., Server], binary: Path) -> None:
    server = start_server(binary)
    settings = RedisSettings(url=server.url)
    redis = await connect(settings)
    queue = JobQueue(redis, QueueSettings(), settings.namespace)
    follower = EventFollower(redis, queue)
    await submit(queue, "j1")
    following = asyncio.create_task(collect(follower, "j1"))
    async with aclosing(cast(Any, follower.follow("j1", idle_s=0.02))) as events:
        assert (await anext(events)).type is EventType.QUEUED
        server.kill()
        assert await anext(events) is None  # alive, and silent
        server.start()
        await queue.cancel("j1")
        rest = [event.type async for event in events if event is not None]
        assert rest == [EventType.CANCELED]
    assert [event.type for event in await following] == [EventType.QUEUED, EventType.CANCELED]
    await follower.aclose()
    await redis.aclose()


async def test_slow_reader_holds_one_page(queue: JobQueue, follower: EventFollower) -> None:
    await submit(queue, "j1", stage=Stage.PROMPT)
    writing = await claim(queue, Stage.PROMPT)
    async with aclosing(cast(Any, follower.follow("j1"))) as events:
        await anext(events)
        for start in range(0, 1_000, 100):
            await writing.emit_many([(EventType.PROMPT_DELTA, {"text": str(start + n)}) for n in range(100)])
        held = sum(len(value) for value in events.ag_frame.f_locals.values() if isinstance(value, list))
        assert held <= PAGE_EVENTS
        await queue.cancel("j1")
        assert len([event async for event in events]) == 1_002  # started, deltas, canceled


@pytest.mark.parametrize("text", ["", "1", "1-", "-1", "a-1", "1-1-1", "+", "(1-1", f"{10**19}-0", " 1-1"])
async def test_what_is_no_event_id_is_refused(queue: JobQueue, follower: EventFollower, text: str) -> None:
    assert not is_event_id(text)
    with pytest.raises(ValueError):
        await collect(follower, "j1", text)


def test_event_ids_are_recognized() -> None:
    assert is_event_id("0-0")
    assert is_event_id(f"{10**19 - 1}-{10**19 - 1}")
