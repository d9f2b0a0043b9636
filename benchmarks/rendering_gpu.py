"""Pictures per second on a GPU: the engine beside stock diffusers, for the shapes of SD1.5 and SDXL.

    python -m benchmarks.rendering_gpu                          # both kinds, every bucket, eager and compiled
    python -m benchmarks.rendering_gpu --kinds sd15 --rows 2 16 --write
    python -m benchmarks.rendering_gpu --dry-run                # tiny shapes on the CPU, to see that it works

Weights are random, in bf16: speed does not depend on what they say. Each picture has 20 guided steps. Per bucket of
UNet rows: a stock pipeline's call that fills it, the engine without pause, and the engine under Poisson arrivals at 0.8
of that. Checkpoints of the real sizes take 3 and 7 GB of scratch space (`--scratch`).
"""

import argparse
import asyncio
import gc
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch

from benchmarks import results
from benchmarks.rendering_arms import EngineArm, call, pipeline
from benchmarks.rendering_load import GUIDANCE_SCALE, Latency, Wanted, burst, draws, open_loop
from benchmarks.rendering_shapes import KINDS, Shape, written
from services.diffusion.batching import Buckets
from services.diffusion.checkpoints import inspect
from services.diffusion.compilation import allow_graphs
from services.diffusion.loading import LoadedModel, load

ROWS = (2, 4, 8, 16, 32)
STEPS = 20
LOAD = 0.8  # of the engine's own rate without pause
H100_LIMIT_PER_S = {"sd15": 28.5, "sdxl": 3.52}  # 20 guided steps in bf16 at the full 989 TFLOP/s


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured. `seconds`: of each measurement at least; `rounds` of the bursts."""

    kinds: tuple[str, ...]
    rows: tuple[int, ...]
    compiles: tuple[bool, ...]
    steps: int
    seconds: float
    device: torch.device
    is_tiny: bool


@dataclass(frozen=True, slots=True)
class Row:
    """One bucket of one kind: pictures per second three ways, and the latency under Poisson arrivals."""

    kind: str
    side_px: int
    rows: int
    is_compiled: bool
    stock_per_s: float
    engine_per_s: float
    poisson: Latency

    @property
    def gain(self) -> float:
        """The engine's rate over the stock pipeline's, in equal batches."""
        return self.engine_per_s / self.stock_per_s


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and store if asked to; return 2 where there is no GPU."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rendering_gpu", description=__doc__.partition("\n")[0])
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--rows", nargs="+", type=int, default=list(ROWS), help="buckets; a picture takes two rows")
    parser.add_argument("--compile", choices=["both", "on", "off"], default="both", help="torch.compile")
    parser.add_argument("--seconds", type=float, default=30.0, help="of each measurement at least")
    parser.add_argument("--scratch", type=Path, help="folder for the checkpoints, removed afterwards")
    parser.add_argument("--dry-run", action="store_true", help="tiny shapes, few steps, on the CPU")
    parser.add_argument("--write", action="store_true", help="store the result and the table")
    given = parser.parse_args(arguments)
    if not given.dry_run and not torch.cuda.is_available():
        sys.stderr.write("no CUDA device was found; --dry-run shows on the CPU that everything works\n")
        return 2
    plan = Plan(
        kinds=tuple(given.kinds),
        rows=(2, 4) if given.dry_run else tuple(given.rows),
        compiles={"both": (False, True), "on": (True,), "off": (False,)}[given.compile],
        steps=2 if given.dry_run else STEPS,
        seconds=0.5 if given.dry_run else given.seconds,
        device=torch.device("cpu" if given.dry_run else "cuda:0"),
        is_tiny=given.dry_run,
    )
    measured = list(measure(plan, given.scratch))
    print(table(measured))
    if given.write:
        store(measured, plan)
    return 0


def measure(plan: Plan, scratch: Path | None = None) -> Iterator[Row]:
    """Yield a row per kind, bucket, and way to run the UNet."""
    allow_graphs()
    for kind in plan.kinds:
        with TemporaryDirectory(prefix="llmga-rendering-", dir=scratch) as folder:
            yield from _rows(kind, Path(folder) / kind, plan)
        gc.collect()
        if plan.device.type == "cuda":
            torch.cuda.empty_cache()


def _rows(kind: str, folder: Path, plan: Plan) -> Iterator[Row]:
    shape = KINDS[kind]
    model = load(
        kind,
        inspect(written(folder, shape, plan.device, is_tiny=plan.is_tiny)),
        device=plan.device,
        dtype=torch.float32 if plan.is_tiny else torch.bfloat16,
        buckets=Buckets(plan.rows),
    )
    for is_compiled in plan.compiles:
        unet = torch.compile(model.unet, dynamic=False) if is_compiled else model.unet
        for rows in plan.rows:
            one = replace(model, unet=unet, buckets=Buckets([rows]))
            yield asyncio.run(_row(one, shape, rows, is_compiled, plan))


async def _row(model: LoadedModel, shape: Shape, rows: int, is_compiled: bool, plan: Plan) -> Row:
    side, pictures = model.side_px, rows // 2
    sys.stderr.write(f"{shape.kind} at {side}x{side}, {rows} rows, {'compiled' if is_compiled else 'eager'}\n")
    wanted = _wanted(side, plan.steps)
    stock_per_s = await asyncio.to_thread(_stock, model, list(islice(wanted, pictures)), plan.seconds)
    arm = EngineArm(model, max_pictures=4 * pictures)
    try:
        await burst(arm, list(islice(wanted, pictures)))  # warm
        rates: list[float] = []
        end = time.perf_counter() + plan.seconds
        while not rates or time.perf_counter() < end:
            crowd = list(islice(wanted, 4 * pictures))
            rates.append(len(crowd) / await burst(arm, crowd))
        engine_per_s = median(rates)
        done = await open_loop(arm, wanted, LOAD * engine_per_s, plan.seconds, grace_s=plan.seconds)
    finally:
        await arm.close()
    return Row(shape.kind, side, rows, is_compiled, stock_per_s, engine_per_s, Latency.of(done))


def _wanted(side: int, steps: int) -> Iterator[Wanted]:
    for one in draws([(side, side)] * 2, seed=0):
        yield replace(one, num_inference_steps=steps, guidance_scale=GUIDANCE_SCALE)


def _stock(model: LoadedModel, batch: Sequence[Wanted], seconds: float) -> float:
    """Return the pictures per second of a stock pipeline's calls."""
    pipe = pipeline(model)
    call(pipe, batch)  # warm
    rates: list[float] = []
    end = time.perf_counter() + seconds
    while not rates or time.perf_counter() < end:
        started = time.perf_counter()
        call(pipe, batch)
        rates.append(len(batch) / (time.perf_counter() - started))
    return median(rates)


def table(measured: Sequence[Row]) -> str:
    """Return the result as a Markdown table."""
    lines = [
        "| model | pixels | rows | UNet | stock, pictures/s | engine, pictures/s | engine over stock "
        "| p50 / p99 s at 0.8 | limit of an H100, pictures/s |",
        "|---|---:|---:|---|---:|---:|---:|---:|---:|",
    ]
    for row in measured:
        latency = row.poisson
        lines.append(
            f"| {row.kind} | {row.side_px} | {row.rows} | {'compiled' if row.is_compiled else 'eager'} "
            f"| {row.stock_per_s:.2f} | {row.engine_per_s:.2f} | {row.gain:.2f} "
            f"| {latency.p50_s:.2f} / {'≥ ' if latency.cut else ''}{latency.p99_s:.2f} "
            f"| {H100_LIMIT_PER_S[row.kind]:g} |"
        )
    return "\n".join(lines)


def store(measured: Sequence[Row], plan: Plan) -> None:
    """Write the result and the table."""
    gpu = "CPU" if plan.device.type == "cpu" else torch.cuda.get_device_name(plan.device)
    result: dict[str, Any] = {"gpu": gpu, "steps": plan.steps, "rows": [asdict(row) for row in measured]}
    packages = ("torch", "diffusers", "transformers")
    results.store("rendering_gpu", result, packages=packages, note=gpu, table=table(measured))


if __name__ == "__main__":
    sys.exit(main())
