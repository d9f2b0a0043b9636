"""Estimates come close to what happens, and nothing is said where nothing is known."""

import heapq
import random
import statistics
from typing import Any, cast

import pytest

from shared.contracts import EventType, Job, JobStatus, Stage, Task
from shared.contracts.limits import UNIT, Charge
from shared.jobs import Claim, JobQueue
from shared.jobs.estimates import Load, Outlook, remaining_ms
from tests.shared.jobs.steps import claim, end_lease, image, prompt, server_ms, submit

TOLERANCE = 0.3


async def lasting(queue: JobQueue, taken: Claim, seconds: float) -> Claim:
    """Make an attempt have begun that long ago, without waiting."""
    began_ms = round(await server_ms(queue.redis) - seconds * 1000)
    await cast(Any, queue.redis.hset(queue.job_key(taken.job.id), "started", began_ms))
    return taken


async def rendered(queue: JobQueue, units: float, seconds: float, **fields: Any) -> None:
    """Submit a job and let it take that long."""
    await submit(queue, charge=Charge(render=round(units * UNIT)), **fields)
    await (await lasting(queue, await claim(queue), seconds)).finish([image()])


async def written(queue: JobQueue, seconds: float) -> None:
    """Let the prompt of a job take that long, and nothing more come of it."""
    await submit(queue, stage=Stage.PROMPT, task=Task.PROMPT, charge=Charge(prompt=100))
    await (await lasting(queue, await claim(queue, Stage.PROMPT), seconds)).advance(prompt())


def near(job: Job, seconds: float) -> bool:
    """Whether the job's estimate is within the tolerance."""
    assert job.eta_s is not None
    return abs(job.eta_s - seconds) <= TOLERANCE * seconds


async def test_estimate_converges_on_what_a_unit_takes(queue: JobQueue) -> None:
    randomness = random.Random(7)
    for seconds_per_unit in (2.0, 9.0, 2.0):  # a device, a slower one, the first again
        for _ in range(16):
            units = randomness.choice((0.25, 0.5, 1.0, 3.0))
            await rendered(queue, units, units * seconds_per_unit * randomness.uniform(0.85, 1.15))
        for units in (0.25, 1.0, 4.0):
            job = await submit(queue, charge=Charge(render=round(units * UNIT)))
            assert near(job, units * seconds_per_unit), (seconds_per_unit, units, job.eta_s)
            await queue.cancel(job.id)


async def test_nothing_is_said_before_a_job_of_its_kind_has_ended(queue: JobQueue) -> None:
    await rendered(queue, 1, 2, batch_key="sdxl")
    assert (await submit(queue, batch_key="sd15", charge=Charge(render=UNIT))).eta_s is None
    assert (await submit(queue, batch_key="sdxl", charge=Charge(render=UNIT))).eta_s is not None
    whole = await submit(queue, stage=Stage.PROMPT, batch_key="sdxl", charge=Charge(100, UNIT))
    assert whole.eta_s is None  # the prompt's time is not known
    await queue.cancel(whole.id)
    await written(queue, 3)
    whole = await submit(queue, stage=Stage.PROMPT, batch_key="sdxl", charge=Charge(100, UNIT))
    assert whole.eta_s is not None


async def test_models_have_paces_of_their_own(queue: JobQueue) -> None:
    for _ in range(2):
        await rendered(queue, 1, 2, batch_key="sd15")
        await rendered(queue, 1, 20, batch_key="sdxl")
    for batch_key, seconds in (("sd15", 2), ("sdxl", 20)):
        job = await submit(queue, batch_key=batch_key, charge=Charge(render=UNIT))
        assert near(job, seconds)
        await queue.cancel(job.id)


async def test_running_job_comes_closer_to_its_end_by_its_clock_and_by_its_steps(queue: JobQueue) -> None:
    await rendered(queue, 1, 10)
    await submit(queue, "j1", charge=Charge(render=UNIT))
    taken = await lasting(queue, await claim(queue), 4)
    job = await queue.get("j1")
    assert job.queue is None
    assert near(job, 6)
    await taken.emit(EventType.RENDER_PROGRESS, {"index": 0, "step": 9, "total_steps": 10})
    assert near(await queue.get("j1"), 1)
    await lasting(queue, taken, 60)
    assert near(await queue.get("j1"), 1)  # the steps know better than the clock
    await taken.finish([image()])
    assert (await queue.get("j1")).eta_s is None


async def test_attempt_that_lasts_longer_than_expected_is_about_to_end(queue: JobQueue) -> None:
    await rendered(queue, 1, 2)
    await submit(queue, "j1", charge=Charge(render=UNIT))
    await lasting(queue, await claim(queue), 60)
    assert (await queue.get("j1")).eta_s == 0


async def test_interrupted_work_teaches_nothing(queue: JobQueue) -> None:
    await rendered(queue, 1, 10)
    expected_s = (await submit(queue, "j1", charge=Charge(render=UNIT))).eta_s
    await lasting(queue, await claim(queue), 500)
    await end_lease(queue, "j1")
    await queue.reap()
    await (await lasting(queue, await claim(queue), 1)).finish([image()])  # it went on where the first one was lost
    assert (await submit(queue, charge=Charge(render=UNIT))).eta_s == expected_s


async def test_held_job_has_no_estimate_and_its_prompt_is_estimated_up_to_the_hold(queue: JobQueue) -> None:
    await written(queue, 3)
    await rendered(queue, 1, 100)
    job = await submit(queue, "j1", stage=Stage.PROMPT, approve=True, charge=Charge(100, UNIT))
    assert near(job, 3)
    await (await claim(queue, Stage.PROMPT)).advance(prompt())
    held = await queue.get("j1")
    assert (held.status, held.eta_s) == (JobStatus.AWAITING_APPROVAL, None)
    assert near(await queue.approve("j1"), 100)


async def test_job_waits_for_those_before_it_in_each_stage(queue: JobQueue) -> None:
    await written(queue, 1)
    await rendered(queue, 1, 10)
    for _ in range(3):
        await submit(queue, charge=Charge(render=UNIT))
    job = await submit(queue, stage=Stage.PROMPT, charge=Charge(100, UNIT))
    assert near(job, 3 * 10 + 10)  # its prompt is written meanwhile
    await claim(queue)
    await claim(queue)  # two at a time
    assert near(await queue.get(job.id), 15 + 10)


def _simulated(workers: int, works_ms: list[float], arrivals_ms: list[float]) -> list[tuple[float, float]]:
    """Return (estimate, truth) of each job of a stage whose workers take one at a time, first in, first out."""
    free_at = [0.0] * workers
    ends: list[tuple[float, float]] = []  # (start, end) so far
    pairs = []
    mean_ms = statistics.fmean(works_ms)
    for arrival, work in zip(arrivals_ms, works_ms, strict=True):
        earlier = sum(start > arrival for start, _ in ends)
        running = sum(start <= arrival < end for start, end in ends)
        estimate = remaining_ms(Outlook([Load(earlier, running, mean_ms, 1.0)], None), [round(work)])
        start = max(arrival, heapq.heappop(free_at))
        heapq.heappush(free_at, start + work)
        ends.append((start, start + work))
        assert estimate is not None
        pairs.append((estimate, start + work - arrival))
    return pairs


@pytest.mark.parametrize("workers", [1, 2, 4, 8])
def test_estimates_under_load_are_within_a_third_of_the_truth(workers: int) -> None:
    """Jobs of mixed sizes come in bursts, faster than they are done for a while."""
    randomness = random.Random(workers)
    works_ms = [randomness.choice((500.0, 1_000.0, 2_000.0)) for _ in range(400)]
    now, arrivals_ms = 0.0, []
    for number in range(400):
        busy = number % 100 < 50
        now += randomness.expovariate(1.0) * 1_170 / workers * (0.5 if busy else 1.5)
        arrivals_ms.append(now)
    errors = [abs(estimate - truth) / truth for estimate, truth in _simulated(workers, works_ms, arrivals_ms)]
    assert statistics.median(errors) <= TOLERANCE
