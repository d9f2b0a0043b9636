"""The load: who asks for what and when, and how long it took.

An open loop sends requests at the times of a Poisson process, whatever becomes of them, as people do: a server that
cannot keep up gets a queue. A closed loop keeps so many requests under way at any time, which shows what a server makes
when it never lacks work. All arms get the same requests at the same times.
"""

import asyncio
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median, quantiles
from typing import Protocol

STEPS = (4, 8, 20, 50)
STEP_WEIGHTS = (35, 30, 25, 10)  # most people look at drafts
GUIDED_SHARE = 0.75
RARE_SHARE = 0.2  # of the second size
GUIDANCE_SCALE = 7.5
CLIENTS = 64  # of the closed loop: four times what a full bucket holds, so that whole-request batches can be found
_FEW, _LOOK_S = 8, 0.1
_PROMPTS = tuple(
    f"a {color} {shape} {place}"
    for color in ("red", "blue", "green", "yellow")
    for shape in ("circle", "square", "star", "house")
    for place in ("at night", "in the rain", "on a hill", "by the sea")
)


@dataclass(frozen=True, slots=True)
class Wanted:
    """One request. size: (width, height) in pixels."""

    prompt: str
    size: tuple[int, int]
    seed: int
    num_inference_steps: int
    guidance_scale: float

    @property
    def rows(self) -> int:
        """UNet rows of each step."""
        return 2 if self.guidance_scale > 1 else 1


@dataclass(frozen=True, slots=True)
class Done:
    """What became of a request.

    is_cut: it was not finished when the measurement ended, `seconds` is until then, and `share` of its steps was made.
    """

    wanted: Wanted
    asked_s: float
    seconds: float
    is_cut: bool = False
    share: float = 1.0

    @property
    def ended_s(self) -> float:
        """When the picture was there, on the clock of `asked_s`."""
        return self.asked_s + self.seconds


class Arm(Protocol):
    """One way to serve."""

    name: str

    async def make(self, wanted: Wanted) -> None:
        """Return when the picture is made; a cancel drops it."""

    def share_of(self, wanted: Wanted) -> float:
        """Return which share of a picture's steps was made, where the arm can tell; otherwise 0."""

    async def close(self) -> None:
        """End the arm's threads."""


def draws(sizes: Sequence[tuple[int, int]], seed: int) -> Iterator[Wanted]:
    """Yield requests without end: the same ones for the same seed. The second size is the rare one."""
    randomness = random.Random(seed)
    common, rare = sizes
    while True:
        yield Wanted(
            prompt=randomness.choice(_PROMPTS),
            size=rare if randomness.random() < RARE_SHARE else common,
            seed=randomness.randrange(1 << 32),
            num_inference_steps=randomness.choices(STEPS, STEP_WEIGHTS)[0],
            guidance_scale=GUIDANCE_SCALE if randomness.random() < GUIDED_SHARE else 1.0,
        )


async def open_loop(arm: Arm, wanted: Iterator[Wanted], per_s: float, seconds: float, *, grace_s: float) -> list[Done]:
    """Send requests at a Poisson process's times, the first at once; cut off what is not done `grace_s` later."""
    randomness = random.Random(1)
    started = time.perf_counter()
    done: list[Done] = []
    tasks: list[asyncio.Task[None]] = []
    at = 0.0
    while at < seconds:
        await asyncio.sleep(max(0.0, started + at - time.perf_counter()))
        tasks.append(asyncio.create_task(_ask(arm, next(wanted), started + at, done)))  # late or not, it was asked then
        at += randomness.expovariate(per_s)
    if tasks:
        await asyncio.wait(tasks, timeout=started + seconds + grace_s - time.perf_counter())
    await _cut(tasks)
    return done


async def closed_loop(arm: Arm, wanted: Iterator[Wanted], seconds: float, *, clients: int = CLIENTS) -> list[Done]:
    """Keep so many requests under way for some seconds, and on until a few are done."""
    done: list[Done] = []
    end = time.perf_counter() + seconds

    async def client() -> None:
        while True:
            await _ask(arm, next(wanted), time.perf_counter(), done)

    tasks = [asyncio.create_task(client()) for _ in range(clients)]
    while time.perf_counter() < end or len(done) < _FEW:
        await asyncio.wait(tasks, timeout=_LOOK_S)  # they end with an error only
        if any(task.done() for task in tasks):
            break
    await _cut(tasks)
    return done


async def burst(arm: Arm, wanted: Sequence[Wanted]) -> float:
    """Send requests all at once; return the seconds until the last is done."""
    started = time.perf_counter()
    await asyncio.gather(*(arm.make(one) for one in wanted))
    return time.perf_counter() - started


async def _ask(arm: Arm, wanted: Wanted, asked_s: float, done: list[Done]) -> None:
    try:
        await arm.make(wanted)
    except asyncio.CancelledError:
        done.append(Done(wanted, asked_s, time.perf_counter() - asked_s, is_cut=True, share=arm.share_of(wanted)))
        raise
    done.append(Done(wanted, asked_s, time.perf_counter() - asked_s))


async def _cut(tasks: Sequence[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    for outcome in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(outcome, Exception):
            raise outcome


@dataclass(frozen=True, slots=True)
class Latency:
    """Seconds from asking to the picture. Those of `cut` requests count up to the cut: a lower bound."""

    requests: int
    cut: int
    p50_s: float
    p99_s: float

    @classmethod
    def of(cls, done: Sequence[Done]) -> "Latency":
        """Summarize an open loop."""
        seconds = [one.seconds for one in done]
        cut = sum(one.is_cut for one in done)
        if not seconds:
            return cls(0, 0, 0.0, 0.0)
        return cls(len(done), cut, median(seconds), percentile(seconds, 99))


def percentile(values: Sequence[float], percent: int) -> float:
    """Return a percentile, between the values where it falls there."""
    return quantiles(values, n=100, method="inclusive")[percent - 1] if len(values) > 1 else values[0]
