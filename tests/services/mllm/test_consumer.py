"""The handler of claims over the real queue and a scripted engine: rates, cancels, priorities."""

import asyncio
import uuid
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from redis.asyncio import Redis

from services.mllm.consumer import DELTAS_PER_S_IN_ALL, MAX_DELTAS_PER_S, PromptJobs
from services.mllm.pictures import Picture, picture_of
from services.mllm.writing import Piece, Sampling
from shared.artifacts import FolderStore
from shared.contracts import EventType, GenerationRequest, JobStatus, Lane, Outpaint, OutputFormat, Stage, Task
from shared.errors import Gone, PromptEmpty, QueueUnavailable
from shared.jobs import DEFAULT_TENANT, Claim, EventFollower, JobCanceled, JobQueue
from shared.media import encode_image
from shared.settings import MLLMSettings
from tests.services.mllm.test_writing import ScriptedEngine, writer


class Clock:
    """Time that passes only when something is written."""

    def __init__(self, step_s: float) -> None:
        self.now = 100.0
        self.step_s = step_s

    def __call__(self) -> float:
        self.now += self.step_s
        return self.now


class SilentEngine(ScriptedEngine):
    """Begins, says so, and then writes nothing more until it is left."""

    def __init__(self) -> None:
        super().__init__()
        self.begun = asyncio.Event()

    async def generate(
        self, token_ids: list[int], sampling: Sampling, *, picture: Picture | None, request_id: str, priority: int
    ) -> AsyncGenerator[Piece, None]:
        try:
            yield Piece("<gen_image> fox", [1])
            self.begun.set()
            await asyncio.Event().wait()
        finally:
            self.closed = True


class RememberingEngine(ScriptedEngine):
    """Remembers the priorities and ids that it was given."""

    def __init__(self) -> None:
        super().__init__("<gen_image>a</gen_image>")
        self.requests: list[tuple[str, int]] = []
        self.pictures: list[Picture | None] = []

    def generate(
        self, token_ids: list[int], sampling: Sampling, *, picture: Picture | None, request_id: str, priority: int
    ) -> AsyncGenerator[Piece, None]:
        self.requests.append((request_id, priority))
        self.pictures.append(picture)
        return super().generate(token_ids, sampling, picture=picture, request_id=request_id, priority=priority)


@pytest.fixture
def artifacts(tmp_path: Path) -> FolderStore:
    """Return the store that the jobs' pictures are in."""
    return FolderStore(tmp_path, retention_s=3_600)


async def claimed(queue: JobQueue, **wishes: Any) -> Claim:
    """Return a claim on a new job, of task `prompt` unless told otherwise."""
    request = {"task": Task.PROMPT, "instruction": "draw a fox", "seed": 5, **wishes}
    await queue.submit(
        GenerationRequest.model_validate(request),
        job_id=uuid.uuid4().hex,
        stage=Stage.PROMPT,
        batch_key="mini",
        body_hash="0" * 64,
    )
    claim = await queue.claim(Stage.PROMPT, worker="worker-1")
    assert claim is not None
    return claim


async def deltas_of(queue: JobQueue, redis: Redis, job_id: str) -> list[str]:
    """Return the texts of a finished job's deltas."""
    follower = EventFollower(redis, queue)
    try:
        return [
            event.data["text"]
            async for event in follower.follow(job_id)
            if event is not None and event.type is EventType.PROMPT_DELTA
        ]
    finally:
        await follower.aclose()


@pytest.mark.parametrize(("step_s", "at_most"), [(0.001, 300 * 0.001 * MAX_DELTAS_PER_S + 2), (1.0, 300)])
async def test_deltas_are_told_at_a_bounded_rate_and_concatenate_to_the_prompt(
    queue: JobQueue, redis_client: Redis, artifacts: FolderStore, step_s: float, at_most: float
) -> None:
    engine = ScriptedEngine("<gen_image>", *[f" w{number}" for number in range(300)], "</gen_image>")
    claim = await claimed(queue)
    await PromptJobs(writer(engine), MLLMSettings(), artifacts, clock=Clock(step_s)).handle(claim)
    job = await queue.get(claim.job.id, tenant=DEFAULT_TENANT)
    deltas = await deltas_of(queue, redis_client, claim.job.id)
    assert job.status is JobStatus.SUCCEEDED
    assert job.prompt is not None
    assert "".join(deltas) == job.prompt.text == " ".join(f"w{number}" for number in range(300))
    assert 1 < len(deltas) <= at_most


class Slow(ScriptedEngine):
    """Lets the other jobs write between its pieces, and the queue answer, however slow it is."""

    def __init__(self, redis: Redis, *texts: str) -> None:
        super().__init__(*texts)
        self._redis = redis

    async def generate(
        self, token_ids: list[int], sampling: Sampling, *, picture: Picture | None, request_id: str, priority: int
    ) -> AsyncGenerator[Piece, None]:
        async for piece in super().generate(
            token_ids, sampling, picture=picture, request_id=request_id, priority=priority
        ):
            yield piece
            for _ in range(3):
                await self._redis.ping()


async def test_many_jobs_together_tell_at_a_bounded_rate(
    queue: JobQueue, redis_client: Redis, artifacts: FolderStore
) -> None:
    words = 60

    async def counted(together: int) -> list[int]:
        engine = Slow(redis_client, "<gen_image>", *[f" w{number}" for number in range(words)], "</gen_image>")
        step_s = 1.01 / MAX_DELTAS_PER_S / together  # of a clock that every piece of every job moves on
        jobs = PromptJobs(writer(engine), MLLMSettings(), artifacts, clock=Clock(step_s))
        claims = [await claimed(queue) for _ in range(together)]
        await asyncio.gather(*(jobs.handle(claim) for claim in claims))
        return [len(await deltas_of(queue, redis_client, claim.job.id)) for claim in claims]

    (alone,) = await counted(1)
    assert alone > words / 2, "one told for almost every piece"
    # Five jobs may tell 30 times a second each: more than their own bound. Sixty may tell five times each.
    assert DELTAS_PER_S_IN_ALL / 5 > MAX_DELTAS_PER_S
    assert max(await counted(5)) > alone / 2
    assert 1 < max(await counted(60)) < alone / 2


class Waits(ScriptedEngine):
    """Writes a few words, then goes on when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.go_on = asyncio.Event()
        self.words = 0

    async def generate(
        self, token_ids: list[int], sampling: Sampling, *, picture: Picture | None, request_id: str, priority: int
    ) -> AsyncGenerator[Piece, None]:
        yield Piece("<gen_image>", [1])
        for number in range(20):
            yield Piece(f" w{number}", [1])
            self.words += 1
            await asyncio.sleep(0)
        await self.go_on.wait()
        yield Piece("</gen_image>", [1], "stop")


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.01)


async def test_a_queue_that_is_slow_to_hear_gets_fewer_deltas_and_holds_up_no_writing(
    queue: JobQueue, redis_client: Redis, artifacts: FolderStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, claim, hears = Waits(), await claimed(queue), asyncio.Event()
    emit, told = claim.emit, 0

    async def slow_from_the_second_on(*arguments: Any) -> None:
        nonlocal told
        told += 1
        if told > 1:
            await hears.wait()
        await emit(*arguments)

    monkeypatch.setattr(claim, "emit", slow_from_the_second_on)
    handling = asyncio.create_task(
        PromptJobs(writer(engine), MLLMSettings(), artifacts, clock=Clock(1.0)).handle(claim)
    )
    await until(lambda: engine.words == 20)  # the second delta is not told yet
    hears.set()
    engine.go_on.set()
    await handling
    rest = " " + " ".join(f"w{number}" for number in range(2, 20))
    assert await deltas_of(queue, redis_client, claim.job.id) == ["w0", " w1", rest]


async def test_a_job_that_vllm_is_done_with_holds_no_place_in_it(
    queue: JobQueue, artifacts: FolderStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim, hears = await claimed(queue), asyncio.Event()
    advance = claim.advance

    async def slow(*arguments: Any) -> None:
        await hears.wait()
        await advance(*arguments)

    monkeypatch.setattr(claim, "advance", slow)
    jobs = PromptJobs(writer(ScriptedEngine("<gen_image>a</gen_image>")), MLLMSettings(), artifacts)
    handling = asyncio.create_task(jobs.handle(claim))
    await until(lambda: jobs.finishing == 1)
    hears.set()
    await handling
    assert jobs.finishing == 0


async def test_a_delta_that_cannot_be_told_ends_the_attempt(
    queue: JobQueue, artifacts: FolderStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, claim = Waits(), await claimed(queue)

    async def refused(*_: Any) -> None:
        raise QueueUnavailable("The queue is away.", retry_after_s=1)

    monkeypatch.setattr(claim, "emit", refused)
    with pytest.raises(QueueUnavailable):
        await PromptJobs(writer(engine), MLLMSettings(), artifacts, clock=Clock(1.0)).handle(claim)


async def test_the_job_s_seed_and_the_settings_reach_the_engine(queue: JobQueue, artifacts: FolderStore) -> None:
    engine = ScriptedEngine("<gen_image>a</gen_image>")
    settings = MLLMSettings(temperature=0.7, max_tokens=33)
    await PromptJobs(writer(engine), settings, artifacts).handle(await claimed(queue))
    (sampling,) = engine.asked
    assert (sampling.seed, sampling.temperature, sampling.max_tokens) == (5, 0.7, 33)


async def test_batch_work_has_a_higher_number_than_interactive_work(queue: JobQueue, artifacts: FolderStore) -> None:
    engine = RememberingEngine()
    jobs = PromptJobs(writer(engine), MLLMSettings(), artifacts)
    interactive, batch = await claimed(queue), await claimed(queue, lane=Lane.BATCH)
    await jobs.handle(interactive)
    await jobs.handle(batch)
    (first_id, first), (second_id, second) = engine.requests
    assert first < second
    assert first_id.startswith(interactive.job.id)
    assert second_id.startswith(batch.job.id)


async def test_a_canceled_job_leaves_an_engine_that_is_silent(queue: JobQueue, artifacts: FolderStore) -> None:
    engine = SilentEngine()
    claim = await claimed(queue)
    handling = asyncio.create_task(PromptJobs(writer(engine), MLLMSettings(), artifacts).handle(claim))
    await engine.begun.wait()
    await queue.cancel(claim.job.id, tenant=DEFAULT_TENANT)
    claim.lose(JobCanceled("canceled"))  # as the consumer does when it is told
    async with asyncio.timeout(60):
        await asyncio.gather(handling, return_exceptions=True)
    assert engine.closed
    assert claim.canceled
    assert (await queue.get(claim.job.id, tenant=DEFAULT_TENANT)).status is JobStatus.CANCELED


async def test_a_worker_that_ends_stops_writing_and_keeps_the_claim_to_give_back(
    queue: JobQueue, artifacts: FolderStore
) -> None:
    engine = SilentEngine()
    claim = await claimed(queue)
    handling = asyncio.create_task(PromptJobs(writer(engine), MLLMSettings(), artifacts).handle(claim))
    await engine.begun.wait()
    handling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await handling
    assert engine.closed
    await claim.release()
    assert (await queue.get(claim.job.id, tenant=DEFAULT_TENANT)).attempts == 0


async def test_an_answer_without_a_prompt_is_the_job_s_own_error(queue: JobQueue, artifacts: FolderStore) -> None:
    with pytest.raises(PromptEmpty):
        await PromptJobs(writer(ScriptedEngine("<gen_image>", "</gen_image>")), MLLMSettings(), artifacts).handle(
            await claimed(queue)
        )


PIXELS = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)


def kept(artifacts: FolderStore, tenant: str = DEFAULT_TENANT) -> str:
    """Return the id of a picture that is kept."""
    return artifacts.put(encode_image(PIXELS, OutputFormat.PNG, {}), "image/png", tenant=tenant).id


async def test_the_model_sees_the_job_s_picture_squared(queue: JobQueue, artifacts: FolderStore) -> None:
    engine = RememberingEngine()
    claim = await claimed(queue, task=Task.SIMILAR, image=kept(artifacts), instruction="")
    await PromptJobs(writer(engine), MLLMSettings(), artifacts).handle(claim)
    (picture,) = engine.pictures
    assert picture is not None
    assert picture.key == picture_of(PIXELS).key
    job = await queue.get(claim.job.id, tenant=DEFAULT_TENANT)
    assert (job.status, job.stage) == (JobStatus.QUEUED, Stage.RENDER)  # as any other prompt, it is to be rendered


async def test_the_model_sees_black_where_something_is_to_be_painted(queue: JobQueue, artifacts: FolderStore) -> None:
    engine = RememberingEngine()
    jobs = PromptJobs(writer(engine), MLLMSettings(), artifacts)
    mask = np.zeros(PIXELS.shape, np.uint8)
    mask[1:3, 1:3] = 255
    mask_id = artifacts.put(encode_image(mask, OutputFormat.PNG, {}), "image/png", tenant=DEFAULT_TENANT).id
    await jobs.handle(await claimed(queue, task=Task.INPAINT, image=kept(artifacts), mask=mask_id, instruction=""))
    outpaint = Outpaint(left=2, bottom=3)
    await jobs.handle(
        await claimed(queue, task=Task.OUTPAINT, image=kept(artifacts), outpaint=outpaint, instruction="")
    )
    inpainted, outpainted = engine.pictures
    assert inpainted is not None
    assert outpainted is not None
    assert inpainted.key == picture_of(np.where(mask > 0, 0, PIXELS).astype(np.uint8)).key
    assert outpainted.key == picture_of(np.pad(PIXELS, ((0, 3), (2, 0), (0, 0)))).key


async def test_an_edit_is_of_the_whole_picture_and_its_caption_goes_with_the_prompt(
    queue: JobQueue, artifacts: FolderStore
) -> None:
    engine = RememberingEngine()
    image = kept(artifacts)
    claim = await claimed(queue, task=Task.EDIT, image=image, mask=image, instruction="at night")
    await PromptJobs(writer(engine, max_model_len=4_000), MLLMSettings(), artifacts).handle(claim)
    assert [picture and picture.key for picture in engine.pictures] == [picture_of(PIXELS).key] * 2
    job = await queue.get(claim.job.id, tenant=DEFAULT_TENANT)
    assert (job.status, job.stage) == (JobStatus.QUEUED, Stage.RENDER)
    assert job.prompt is not None
    assert (job.prompt.text, job.prompt.source_caption) == ("a", "a")


async def test_a_picture_that_is_no_longer_kept_ends_the_job(queue: JobQueue, artifacts: FolderStore) -> None:
    jobs = PromptJobs(writer(ScriptedEngine()), MLLMSettings(), artifacts)
    with pytest.raises(Gone):
        await jobs.handle(await claimed(queue, image="img_" + "0" * 40))
    with pytest.raises(Gone):
        await jobs.handle(await claimed(queue, image=kept(artifacts, tenant="other")))


async def test_a_job_for_a_story_keeps_all_its_prompts(
    queue: JobQueue, redis_client: Redis, artifacts: FolderStore
) -> None:
    engine = ScriptedEngine("Once <gen_image>a fox", "</gen_image> then <gen_image>", "a hen</gen_image> end.")
    claim = await claimed(queue, instruction="write a story with two pictures")
    await PromptJobs(writer(engine), MLLMSettings(), artifacts).handle(claim)
    prompt = (await queue.get(claim.job.id, tenant=DEFAULT_TENANT)).prompt
    assert prompt is not None
    assert (prompt.text, prompt.more) == ("a fox", ["a hen"])
    assert "".join(await deltas_of(queue, redis_client, claim.job.id)) == "a fox"


async def test_a_job_for_one_picture_ends_with_its_prompt(queue: JobQueue, artifacts: FolderStore) -> None:
    engine = ScriptedEngine("<gen_image>a fox</gen_image>", "<gen_image>a hen</gen_image>")
    claim = await claimed(queue)
    await PromptJobs(writer(engine), MLLMSettings(), artifacts).handle(claim)
    prompt = (await queue.get(claim.job.id, tenant=DEFAULT_TENANT)).prompt
    assert prompt is not None
    assert (prompt.text, prompt.more, engine.given) == ("a fox", None, 1)
