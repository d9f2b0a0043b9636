"""What step-level batching is worth: the engine beside stock diffusers, over the same weights in one process.

    python -m benchmarks.rendering            # print; about twenty minutes
    python -m benchmarks.rendering --quick    # a minute, to see that it works; its numbers say little
    python -m benchmarks.rendering --write    # store results/rendering.json, the plots and the table in README.md

Four arms serve the same requests at the same times: the engine; (a) a stock pipeline that makes one request at a
time; (b) one that batches whole requests which are alike and meet within 50 ms; (c) two threads with a pipeline each.
Requests mix 4 to 50 steps, guided and not, in two sizes (`rendering_load`). First the UNet alone is timed by rows:
what batching can gain at most. Then each arm works without pause (saturation), and then under Poisson arrivals at
shares of (b)'s capacity. The engine alone is looked at more closely in `rendering_engine`. Every arm has torch's same
threads.
"""

import argparse
import asyncio
import gc
import os
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

from services.diffusion.environment import ENVIRONMENT

os.environ.update(ENVIRONMENT | os.environ)

import torch

from benchmarks import rendering_report
from benchmarks.rendering_arms import EngineArm, in_threads, in_windows, one_at_a_time
from benchmarks.rendering_engine import look_at
from benchmarks.rendering_load import Arm, Done, Latency, Wanted, closed_loop, draws, open_loop
from benchmarks.rendering_models import CallTimes, loaded, small, time_calls, tiny
from benchmarks.rendering_report import ArmResult, ModelResult
from services.diffusion.loading import LoadedModel
from services.diffusion.threads import in_own_thread

SHARES = (0.5, 0.8, 1.0, 2.0)  # of (b)'s capacity
RARE_FACTOR = 0.75  # the second size's width, of the model's own
ARMS: tuple[Callable[[LoadedModel], Arm], ...] = (EngineArm, one_at_a_time, in_windows, in_threads)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Plan:
    """How long each part takes.

    `calls_s`: timing the UNet; `saturated_s`: per arm; `open_s`: per arm and share of the capacity. What is under way
    then is cut off after `grace_s`, and below (b)'s capacity after `finish_s`, in which (b) and whoever makes as much
    come to their ends.
    """

    calls_s: float = 15.0
    saturated_s: float = 20.0
    open_s: float = 20.0
    grace_s: float = 4.0
    finish_s: float = 20.0
    shares: tuple[float, ...] = SHARES
    crowds: tuple[int, ...] = (16, 64, 256)

    @classmethod
    def quick(cls) -> "Plan":
        """Return the plan that only shows that everything works."""
        return cls(calls_s=1.0, saturated_s=3.0, open_s=2.0, finish_s=1.0, shares=(0.8,), crowds=(4, 16))


def main() -> int:
    """Measure, print, and store if asked to."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rendering", description=__doc__.partition("\n")[0])
    parser.add_argument("--model", type=Path, metavar="FOLDER", help="measure this SD1.5 checkpoint only")
    parser.add_argument("--quick", action="store_true", help="see that it works, in about a minute")
    parser.add_argument("--write", action="store_true", help="store the result, the plots and the table")
    arguments = parser.parse_args()
    plan = Plan.quick() if arguments.quick else Plan()
    results = []
    with TemporaryDirectory(prefix="llmga-rendering-") as scratch:
        folder = Path(scratch)
        makers: list[Callable[[], LoadedModel]] = [lambda: tiny(folder / "tiny"), lambda: small(folder / "small")]
        if arguments.model is not None:
            makers = [lambda: loaded(arguments.model.name, arguments.model)]
        elif arguments.quick:
            del makers[1:]
        for make in makers:
            results.append(asyncio.run(_measured(make, plan)))
            gc.collect()
    print(rendering_report.text(results))
    if arguments.write:
        rendering_report.store(results, threads=torch.get_num_threads())
    return 0


async def _measured(make: Callable[[], LoadedModel], plan: Plan) -> ModelResult:
    return await measure(await in_own_thread(make), plan)


async def measure(model: LoadedModel, plan: Plan) -> ModelResult:
    """Measure everything about one checkpoint."""
    side = model.side_px
    sizes = [(side, side), (round(side * RARE_FACTOR) // 8 * 8, side)]
    _say(model, "the UNet alone")
    times = await in_own_thread(partial(time_calls, model, sizes, seconds=plan.calls_s))
    mean_s = _mean_cost_s(times, sizes)
    saturated: dict[str, float] = {}
    for make in ARMS:

        async def busy(arm: Arm) -> float:
            done = await closed_loop(arm, draws(sizes, seed=0), plan.saturated_s)
            return throughput(done, times, mean_s)

        name, per_s = await _with(make, model, busy)
        saturated[name] = per_s
        _say(model, f"{name}: {per_s:.2f} pictures/s")
    windows = saturated["batches of a 50 ms window"]
    latencies: dict[str, dict[float, Latency]] = {name: {} for name in saturated}
    for share in plan.shares:
        for make in ARMS:

            async def asked(arm: Arm, share: float = share) -> Latency:
                left_s = plan.finish_s if share < 1 else plan.grace_s
                done = await open_loop(arm, draws(sizes, seed=1), share * windows, plan.open_s, grace_s=left_s)
                return Latency.of(done)

            name, latency = await _with(make, model, asked)
            latencies[name][share] = latency
            _say(
                model, f"{name} at {share}: p50 {latency.p50_s:.2f} s, p99 {latency.p99_s:.2f} s of {latency.requests}"
            )
    return ModelResult(
        model=model.name,
        parameters=sum(parameter.numel() for parameter in model.unet.parameters()),
        sizes=sizes,
        gains={rows: times.gain(sizes[0], rows) for rows in times.seconds[sizes[0]]},
        unet_gain=_mix_gain(times, sizes, model.buckets.sizes[-1]),
        rows=model.buckets.sizes[-1],
        capacity_per_s=windows,
        arms=[ArmResult(name, saturated[name], latencies[name]) for name in saturated],
        engine=await look_at(model, sizes[0], seconds=plan.saturated_s, crowds=plan.crowds),
    )


async def _with(
    make: Callable[[LoadedModel], Arm], model: LoadedModel, measured: Callable[[Arm], Awaitable[T]]
) -> tuple[str, T]:
    """Start an arm, measure it and end it; return its name and the result."""
    arm = make(model)
    try:
        return arm.name, await measured(arm)
    finally:
        await arm.close()


def throughput(done: Sequence[Done], times: CallTimes, mean_s: float) -> float:
    """Return a closed loop's pictures per second, in pictures of the mix's mean cost.

    Each counts by what it costs alone, so that it does not matter which requests happened to be done. Of an arm that
    cannot tell how far a picture is, the time ends with its last picture.
    """
    has_shares = any(one.is_cut and one.share for one in done)
    start, end = min(one.asked_s for one in done), max(one.ended_s for one in done if has_shares or not one.is_cut)
    return sum(one.share * _cost_s(one.wanted, times) for one in done) / mean_s / (end - start)


def _cost_s(wanted: Wanted, times: CallTimes) -> float:
    return wanted.num_inference_steps * times.call_s(wanted.size, wanted.rows)


def _mix(sizes: Sequence[tuple[int, int]], count: int = 1_000) -> list[Wanted]:
    source = draws(sizes, seed=2)
    return [next(source) for _ in range(count)]


def _mean_cost_s(times: CallTimes, sizes: Sequence[tuple[int, int]]) -> float:
    mix = _mix(sizes)
    return sum(_cost_s(one, times) for one in mix) / len(mix)


def _mix_gain(times: CallTimes, sizes: Sequence[tuple[int, int]], bucket: int) -> float:
    """Return what the UNet's time for the mix is with each request alone, over that in full buckets."""
    mix = _mix(sizes)
    full_s = sum(one.num_inference_steps * one.rows * times.row_s(one.size, bucket) for one in mix)
    return sum(_cost_s(one, times) for one in mix) / full_s


def _say(model: LoadedModel, what: str) -> None:
    sys.stderr.write(f"{model.name}: {what}\n")


if __name__ == "__main__":
    sys.exit(main())
