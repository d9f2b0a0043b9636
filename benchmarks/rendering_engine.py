"""The engine alone: what it adds to the UNet's calls, how soon it takes a request in, and what a crowd costs."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice, pairwise
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.rendering_arms import SCHEDULER, EngineArm
from benchmarks.rendering_load import GUIDANCE_SCALE, Wanted, burst, draws, open_loop, percentile
from services.diffusion.batching import Buckets
from services.diffusion.loading import LoadedModel
from services.diffusion.requests import RenderRequest
from services.diffusion.solvers import build_scheduler
from services.diffusion.stages import decode_latents, encode_prompts
from shared.contracts import Lane

STEPS = 20
CROWD_STEPS = 8
OVERHEAD_ROWS = 16  # of the calls between which the overhead is measured
_STATUS = Path("/proc/self/status")
_GRACE_S = 60.0  # nobody is cut off: all have been taken in long before
_LOAD = 0.5  # of the engine's capacity, at which rows are free for whoever comes


@dataclass(frozen=True, slots=True)
class Crowd:
    """Requests that come at once. `memory_mb`: how much the process grew over them."""

    requests: int
    seconds_per_picture: float
    memory_mb: float


@dataclass(frozen=True, slots=True)
class EngineResult:
    """The engine's own numbers, all of one size.

    served_per_s, offline_per_s: pictures of guided requests without pause, and of a bare loop over full buckets.
    overhead_share: time between two full calls without side work, over the time of a call. admission_p99_s: from
    submitting to the first call, beside step_p99_s, the UNet's calls under the same load.
    """

    served_per_s: float
    offline_per_s: float
    overhead_share: float
    admission_p99_s: float
    step_p99_s: float
    crowds: list[Crowd]


async def look_at(model: LoadedModel, size: tuple[int, int], *, seconds: float, crowds: Sequence[int]) -> EngineResult:
    """Measure the engine alone."""
    offline_per_s, served_per_s, _ = await _full_buckets(model, size, seconds)
    sixteen = replace(model, buckets=Buckets([OVERHEAD_ROWS]))
    _, _, overhead_share = await _full_buckets(sixteen, size, seconds / 2)
    admission_p99_s, step_p99_s = await _admission(model, size, _LOAD * served_per_s, seconds)
    return EngineResult(
        served_per_s=served_per_s,
        offline_per_s=offline_per_s,
        overhead_share=overhead_share,
        admission_p99_s=admission_p99_s,
        step_p99_s=step_p99_s,
        crowds=[await _crowd(model, size, requests) for requests in crowds],
    )


def _guided(size: tuple[int, int], count: int, steps: int) -> list[Wanted]:
    prompts = islice(draws([size, size], seed=3), count)
    return [Wanted(one.prompt, size, seed, steps, GUIDANCE_SCALE) for seed, one in enumerate(prompts)]


async def _full_buckets(model: LoadedModel, size: tuple[int, int], seconds: float) -> tuple[float, float, float]:
    """Return pictures/s of the bare loop and of the engine, by turns, and the engine's overhead per call."""
    arm = EngineArm(model)
    rows = model.buckets.sizes[-1]
    full_of = rows // 2  # guided requests
    wanted = _guided(size, full_of * 4, STEPS)
    offline: list[float] = []
    served: list[float] = []
    gaps: list[float] = []
    calls_s: list[float] = []
    try:
        await burst(arm, wanted[:full_of])  # warm
        end = time.perf_counter() + seconds
        while not served or time.perf_counter() < end:
            requests = [arm.prepared(one) for one in wanted[:full_of]]
            started = time.perf_counter()
            # On the engine's own thread: with a second one that computes, OpenMP lets none spin.
            work = partial(_loop, model, requests)
            await asyncio.wrap_future(arm.engine.run_aside(work, model.device, lane=Lane.INTERACTIVE))
            offline.append(full_of / (time.perf_counter() - started))
            del arm.unet.calls[:]
            served.append(len(wanted) / await burst(arm, wanted))
            full = [one for one in arm.unet.calls if one.rows == rows]
            calls_s += [one.ended_s - one.started_s for one in full]
            gaps += [two.started_s - one.ended_s for one, two in pairwise(full) if two.side == one.side]
    finally:
        await arm.close()
    return median(offline), median(served), median(gaps) / median(calls_s)


def _loop(model: LoadedModel, requests: Sequence[RenderRequest]) -> None:
    """Make equal requests as one batch that was known beforehand: no queue, one solver, then one decoding each."""
    with torch.inference_mode():
        for request in requests:
            encode_prompts(request, model)
        phases = [request.phases[0] for request in requests]
        embeds = torch.cat([torch.stack([phase.condition.embeds[row] for phase in phases]) for row in (0, 1)])
        scheduler: Any = build_scheduler(SCHEDULER, model.files.scheduler)
        scheduler.set_timesteps(STEPS)
        latents = torch.cat([request.latents for request in requests])
        for timestep in scheduler.timesteps:
            sample = torch.cat([latents, latents])
            answer = model.unet(sample, timestep, encoder_hidden_states=embeds, return_dict=False)[0]
            unconditional, conditional = answer.chunk(2)
            guided = unconditional + GUIDANCE_SCALE * (conditional - unconditional)
            latents = scheduler.step(guided, timestep, latents, return_dict=False)[0]
        for index in range(len(requests)):
            decode_latents(latents[index : index + 1], model)


async def _admission(model: LoadedModel, size: tuple[int, int], per_s: float, seconds: float) -> tuple[float, float]:
    """Return the 99th percentiles of the wait for the first call, and of a call, while rows are free."""
    arm = EngineArm(model)
    wanted = iter(_guided(size, 100_000, STEPS))
    try:
        done = await open_loop(arm, wanted, per_s, seconds, grace_s=_GRACE_S)
        calls = arm.unet.calls
        waits = []
        for one in done:
            told_s = arm.first_progress_s.get(one.wanted)
            if told_s is None:
                continue
            call = max((call for call in calls if call.ended_s <= told_s), key=lambda call: call.ended_s)
            waits.append(max(0.0, call.started_s - one.asked_s))
    finally:
        await arm.close()
    return percentile(waits, 99), percentile([call.ended_s - call.started_s for call in calls], 99)


async def _crowd(model: LoadedModel, size: tuple[int, int], requests: int) -> Crowd:
    arm = EngineArm(model, max_pictures=requests)
    try:
        await burst(arm, _guided(size, model.buckets.sizes[-1] // 2, CROWD_STEPS))  # warm
        Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets VmHWM
        before = _memory_mb("VmRSS")
        seconds = await burst(arm, _guided(size, requests, CROWD_STEPS))
    finally:
        await arm.close()
    return Crowd(requests, seconds / requests, max(0.0, _memory_mb("VmHWM") - before))


def _memory_mb(line: str) -> float:
    """Return a line of the process's status: `VmRSS` is what it holds, `VmHWM` the most since it was reset."""
    for name, value in (text.split(":") for text in _STATUS.read_text().splitlines()):
        if name == line:
            return int(value.split()[0]) / 1024
    raise LookupError(line)
