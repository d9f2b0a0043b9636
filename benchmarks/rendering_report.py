"""What was measured of rendering: tables, goals and plots."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks import results
from benchmarks.rendering_engine import EngineResult
from benchmarks.rendering_load import Latency

ENGINE, ALONE, WINDOWS = "engine", "one at a time", "batches of a 50 ms window"
_JUDGED_SHARE = 0.8  # of (b)'s capacity, at which latencies are compared
_FLAT = 1.25  # a picture of the largest crowd may cost so much of the smallest's
_COLORS = ("tab:blue", "tab:gray", "tab:orange", "tab:green")


@dataclass(frozen=True, slots=True)
class ArmResult:
    """One arm. `pictures_per_s`: at saturation, in pictures of the mix's mean cost; `latency`: by offered share."""

    name: str
    pictures_per_s: float
    latency: dict[float, Latency]


@dataclass(frozen=True, slots=True)
class ModelResult:
    """One checkpoint.

    gains: of a guided row, by the rows of the call. unet_gain: of the whole mix, all rows in full buckets over each
    request alone. rows: of the engine's largest bucket. capacity_per_s: of (b), the unit of the offered shares.
    """

    model: str
    parameters: int
    sizes: list[tuple[int, int]]
    gains: dict[int, float]
    unet_gain: float
    rows: int
    capacity_per_s: float
    arms: list[ArmResult]
    engine: EngineResult

    def arm(self, name: str) -> ArmResult:
        """Return an arm's result."""
        return next(arm for arm in self.arms if arm.name == name)

    def times_of(self, name: str) -> float:
        """Return the engine's throughput over another arm's."""
        return self.arm(ENGINE).pictures_per_s / self.arm(name).pictures_per_s


@dataclass(frozen=True, slots=True)
class Goal:
    """What is aimed at, and whether it is reached; `limit` is a bound from below, or from above for `is_most`."""

    name: str
    value: float
    limit: float
    is_most: bool = False

    @property
    def is_met(self) -> bool:
        """Whether the value is on the right side of the limit."""
        return self.value <= self.limit if self.is_most else self.value >= self.limit


def goals(result: ModelResult) -> list[Goal]:
    """Return the goals of a checkpoint with what was measured."""
    engine = result.engine
    aims = [
        Goal("throughput over (a), of the UNet's own gain for the mix", result.times_of(ALONE) / result.unet_gain, 0.9),
        Goal("throughput over (b)", result.times_of(WINDOWS), 1.3),
        Goal("served over an offline loop of full buckets", engine.served_per_s / engine.offline_per_s, 0.95),
        Goal("overhead outside the UNet per call of 16 rows", engine.overhead_share, 0.05, is_most=True),
        Goal("admission p99, s", engine.admission_p99_s, engine.step_p99_s + 0.005, is_most=True),
        Goal(
            f"cost of a picture among {engine.crowds[-1].requests} over {engine.crowds[0].requests}",
            engine.crowds[-1].seconds_per_picture / engine.crowds[0].seconds_per_picture,
            _FLAT,
            is_most=True,
        ),
    ]
    if result.model.startswith("tiny"):
        aims.insert(0, Goal("throughput over (a)", result.times_of(ALONE), 2.5))
    ours, theirs = (result.arm(name).latency.get(_JUDGED_SHARE) for name in (ENGINE, WINDOWS))
    if ours is not None and theirs is not None:
        aims.append(Goal("p99 at 0.8 of (b)'s capacity over (b)'s", ours.p99_s / theirs.p99_s, 0.5, is_most=True))
    return aims


def text(measured: Sequence[ModelResult]) -> str:
    """Return everything as Markdown tables."""
    return "\n\n".join(table for result in measured for table in _tables(result))


def _tables(result: ModelResult) -> list[str]:
    sizes = " and ".join(f"{width}x{height}" for width, height in result.sizes)
    gains = ", ".join(f"{gain:.2f} at {rows}" for rows, gain in result.gains.items() if rows > 2)
    crowds = ", ".join(
        f"{crowd.requests}: {1e3 * crowd.seconds_per_picture:.0f} ms and {crowd.memory_mb:.0f} MB"
        for crowd in result.engine.crowds
    )
    shares = list(result.arms[0].latency)
    lines = [
        "| arm | pictures/s |" + "".join(f" p50 / p99 s at {share:g} |" for share in shares),
        "|---|---:|" + "---:|" * len(shares),
        *(
            f"| {arm.name} | {arm.pictures_per_s:.2f} |"
            + "".join(f" {_latency(arm.latency[share])} |" for share in shares)
            for arm in result.arms
        ),
    ]
    aims = [
        "| goal | measured | bound | met |",
        "|---|---:|---:|---|",
        *(
            f"| {goal.name} | {goal.value:.3g} | {'≤' if goal.is_most else '≥'} {goal.limit:.3g} "
            f"| {'yes' if goal.is_met else '**no**'} |"
            for goal in goals(result)
        ),
    ]
    return [
        f"**{result.model}**, UNet of {result.parameters / 1e6:.1f} M parameters, {sizes} pixels. The UNet's own gain "
        f"per guided row: {gains}; for the mix {result.unet_gain:.2f} at {result.rows}.",
        "\n".join(lines),
        "\n".join(aims),
        f"Requests at once, cost per picture and growth of memory: {crowds}.",
    ]


def _latency(latency: Latency) -> str:
    bound = "≥ " if latency.cut else ""
    return f"{latency.p50_s:.2f} / {bound}{latency.p99_s:.2f}"


def store(measured: Sequence[ModelResult], *, threads: int) -> None:
    """Write the numbers, the table and one plot per checkpoint."""
    names = [f"rendering-{result.model.partition(' ')[0]}.png" for result in measured]
    for result, name in zip(measured, names, strict=True):
        plot(result, name)
    pictures = "\n\n".join(
        f"![Latency, throughput and crowds of {result.model}](results/{name})"
        for result, name in zip(measured, names, strict=True)
    )
    whole = {
        "threads": threads,
        "models": [{**asdict(one), "goals": [asdict(goal) for goal in goals(one)]} for one in measured],
    }
    note = f"torch with {threads} threads; a bound `≥` on a latency: some requests were cut off unfinished"
    table = f"{text(measured)}\n\n{pictures}"
    results.store("rendering", whole, packages=("torch", "diffusers", "transformers"), note=note, table=table)


def plot(result: ModelResult, name: str) -> None:
    """Draw latencies by load, throughputs beside the UNet's gain, and the cost of a picture by crowd."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4.6), layout="constrained")
    figure.suptitle(result.model)
    _draw_latency(figure.add_subplot(1, 3, 1), result)
    _draw_throughput(figure.add_subplot(1, 3, 2), result)
    axes = figure.add_subplot(1, 3, 3, xlabel="requests at once", ylabel="ms per picture", xscale="log")
    crowds = result.engine.crowds
    axes.plot(
        [crowd.requests for crowd in crowds],
        [1e3 * crowd.seconds_per_picture for crowd in crowds],
        "o-",
        color="tab:blue",
    )
    axes.set_ylim(0, 1.1 * max(1e3 * crowd.seconds_per_picture for crowd in crowds))
    axes.set_xticks([crowd.requests for crowd in crowds], [str(crowd.requests) for crowd in crowds])
    axes.minorticks_off()
    figure.legend(loc="outside lower center", fontsize=8, ncols=5)
    folder = results.HERE / "results"
    folder.mkdir(exist_ok=True)
    figure.savefig(folder / name, dpi=100)


def _draw_latency(axes: Any, result: ModelResult) -> None:
    for arm, color in zip(result.arms, _COLORS, strict=True):
        loads = [share * result.capacity_per_s for share in arm.latency]
        lines: tuple[tuple[Callable[[Latency], float], str, str], ...] = (
            (lambda latency: latency.p50_s, "-", f"{arm.name}, p50"),
            (lambda latency: latency.p99_s, ":", f"{arm.name}, p99"),
        )
        for value, style, label in lines:
            seconds = [value(latency) for latency in arm.latency.values()]
            axes.plot(loads, seconds, style, marker="o", markersize=3, color=color, label=label)
    axes.set(xlabel="requests per second", ylabel="seconds", yscale="log")
    axes.grid(alpha=0.3)


def _draw_throughput(axes: Any, result: ModelResult) -> None:
    names = [arm.name for arm in result.arms]
    axes.barh(names, [arm.pictures_per_s for arm in result.arms], color=_COLORS)
    limit = result.arm(ALONE).pictures_per_s * result.unet_gain
    axes.axvline(limit, color="black", linestyle="--", linewidth=1, label="(a) times the UNet's own gain")
    axes.set(xlabel="pictures per second at saturation")
    axes.invert_yaxis()
