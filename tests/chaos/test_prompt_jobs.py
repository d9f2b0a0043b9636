"""Two hundred prompts among cancels, clients that leave, and kills of the language model's processes.

Every job ends as its client asked, once; what was told on the way is what came out; and the engine has nothing
left to do in the end.
"""

import asyncio
import json
import os
import random
import signal
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import httpx
import pytest

from shared.contracts import TERMINAL, Event, EventType, Job, JobStatus, Stage
from tests.chaos.test_kill import engine_core, starts
from tests.system import System

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

SEED = 20_241_124
WAVES = (70, 70, 60)  # a kill in the middle of the first and of the second
DIRECT = 12  # requests beside the queue, each left in its middle
PATIENCE_S = 900.0
WHATS = (
    "a snowman",
    "a red circle",
    "a house in winter",
    "a boat at sunset",
    "a blue star",
    "一个夜晚的雪人",
    "a cake",
)

Conduct = Literal["stays", "leaves", "cancels"]


@dataclass
class Client:
    """One job's client: stays to the end, leaves at a random event, or cancels at one."""

    conduct: Conduct
    at_event: int
    body: dict[str, Any]
    job_id: str = ""
    canceled: Job | None = None
    seen: list[str] = field(default_factory=list)

    @classmethod
    def drawn(cls, rng: random.Random) -> "Client":
        """Return a client with a random request and conduct."""
        conduct: Conduct = rng.choices(("stays", "leaves", "cancels"), (2, 1, 1))[0]
        body = {
            "task": "prompt",
            "instruction": f"draw {rng.choice(WHATS)}" + " and a cat" * rng.randrange(40),
            "lane": rng.choice(("interactive", "batch")),
            "seed": rng.randrange(1 << 32),
        }
        return cls(conduct, rng.randrange(8), body)

    async def act(self, http: httpx.AsyncClient) -> None:
        """Submit, follow, and do what is to be done."""
        key = {"Idempotency-Key": uuid.uuid4().hex}
        self.job_id = (await asked(http, "POST", "/v1/generations", json=self.body, headers=key)).json()["id"]
        if self.conduct == "cancels" and self.at_event == 0:
            await self._cancel(http)
        while await self._follow(http) == 503:
            await asyncio.sleep(1)

    async def _follow(self, http: httpx.AsyncClient) -> int:
        """Read the job's events until it ends or the client leaves; return the status of the answer."""
        async with http.stream("GET", f"/v1/jobs/{self.job_id}/events") as stream:
            async for line in stream.aiter_lines():
                if not line.startswith("event: "):
                    continue
                self.seen.append(line.removeprefix("event: "))
                if len(self.seen) > self.at_event:
                    if self.conduct == "leaves":
                        break
                    if self.conduct == "cancels" and self.canceled is None:
                        await self._cancel(http)
            return stream.status_code

    async def _cancel(self, http: httpx.AsyncClient) -> None:
        answer = await asked(http, "POST", f"/v1/jobs/{self.job_id}/cancel")
        self.canceled = Job.model_validate(answer.json())


async def asked(http: httpx.AsyncClient, method: str, path: str, **options: Any) -> httpx.Response:
    """Return the answer; ask again when told to: no worker may be there, or a busy machine too slow for a moment."""
    while (answer := await http.request(method, path, **options)).status_code == 503:
        await asyncio.sleep(float(answer.headers["Retry-After"]))
    assert answer.is_success, answer.text
    return answer


async def ended(http: httpx.AsyncClient, job_id: str) -> Job:
    """Return the job when it has ended."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            job = Job.model_validate((await asked(http, "GET", f"/v1/jobs/{job_id}")).json())
            if job.status in TERMINAL:
                return job
            await asyncio.sleep(0.2)


async def history(http: httpx.AsyncClient, job_id: str) -> list[Event]:
    """Return all events of a job that has ended."""
    text = (await asked(http, "GET", f"/v1/jobs/{job_id}/events")).text
    events = []
    for block in text.strip().split("\n\n"):
        values = dict(line.split(": ", 1) for line in block.splitlines() if ": " in line and not line.startswith(":"))
        if "event" in values:
            data = json.loads(values["data"])
            events.append(Event(id=values["id"], type=EventType(values["event"]), job_id=job_id, data=data))
    return events


async def check(client: Client, http: httpx.AsyncClient) -> Job:
    """Check that the job ended as its client asked, and that its events tell the same."""
    job = await ended(http, client.job_id)
    events = await history(http, client.job_id)
    assert [event.type.ends_stream for event in events] == [False] * (len(events) - 1) + [True]
    assert len({event.id for event in events}) == len(events)
    assert starts(events, Stage.PROMPT) == list(range(1, job.attempts + 1))
    if client.canceled is not None:
        assert job.status is client.canceled.status
        assert job.status in {JobStatus.CANCELED, JobStatus.SUCCEEDED}
    else:
        assert job.status is JobStatus.SUCCEEDED, job.error
    if job.status is JobStatus.SUCCEEDED:
        assert events[-1].type is EventType.SUCCEEDED
        last = max(index for index, event in enumerate(events) if event.type is EventType.STARTED)
        told = "".join(event.data["text"] for event in events[last:] if event.type is EventType.PROMPT_DELTA)
        assert job.prompt is not None
        assert told.strip() == job.prompt.text
    return job


async def left_in_the_middle(url: str, seed: int) -> None:
    """Ask the service directly, and leave when it has begun to answer."""
    body = {"instruction": "draw a cat" + " and a fish" * 50, "temperature": 2, "seed": seed, "max_tokens": 1_000}
    headers = {"Accept": "text/event-stream"}
    async with (
        httpx.AsyncClient(timeout=PATIENCE_S, trust_env=False) as http,
        http.stream("POST", f"{url}/v1/generation-prompts", json=body, headers=headers) as stream,
    ):
        async for _ in stream.aiter_bytes():
            return


def vllm_url(server: int) -> str:
    """Return where vLLM of a language model service listens."""
    environment = Path(f"/proc/{server}/environ").read_bytes().split(b"\0")
    (port,) = [entry.partition(b"=")[2].decode() for entry in environment if entry.startswith(b"LLMGA_MLLM__PORT=")]
    return f"http://127.0.0.1:{port}"


async def gauges(url: str) -> tuple[float, float]:
    """Return how many requests vLLM runs, and how many wait in it."""
    async with httpx.AsyncClient(timeout=60, trust_env=False) as http:
        lines = (await http.get(f"{url}/metrics")).text.splitlines()
    running, waiting = (
        sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"vllm:num_requests_{name}{{"))
        for name in ("running", "waiting")
    )
    return running, waiting


def prompts_in_hand(system: System) -> list[int]:
    """Return how many jobs each language model service says it has."""
    return [worker.running for worker in system.workers() if worker.stage is Stage.PROMPT]


async def killed_in_the_middle(system: System, part: str, clients: list[Client]) -> None:
    """Kill the engine core or the server while it writes for some of the clients; return when it starts again."""
    server = system.pid("mllm")
    victim = engine_core(server) if part == "engine core" else server
    while sum("prompt.delta" in client.seen for client in clients) < 5:
        await asyncio.sleep(0.01)
    os.kill(victim, signal.SIGKILL)
    while (mllm := system.run.services.get("mllm")) is None or mllm.pid == server:
        await asyncio.sleep(0.1)


async def test_every_job_ends_as_asked_among_cancels_departures_and_kills(system: System) -> None:
    rng = random.Random(SEED)
    waves = [[Client.drawn(rng) for _ in range(count)] for count in WAVES]
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=system.run.url, timeout=PATIENCE_S, limits=limits, trust_env=False) as http:
        async with asyncio.timeout(PATIENCE_S), asyncio.TaskGroup() as acting:
            for wave, part in zip(waves, ("engine core", "server", None), strict=True):
                for client in wave:
                    acting.create_task(client.act(http))
                if part is not None:
                    await killed_in_the_middle(system, part, wave)
            # The last wave has met a service that still starts; when it is up, some ask it beside the queue.
            await asyncio.to_thread(system.wait_until_ready)
            url = vllm_url(system.pid("mllm"))
            for seed in range(DIRECT):
                acting.create_task(left_in_the_middle(url, seed))
        jobs = [await check(client, http) for wave in waves for client in wave]
    canceled = [job for job in jobs if job.status is JobStatus.CANCELED]
    # The test has tested something: cancels came in time, and both kills met running jobs.
    assert len(canceled) >= 10
    assert len(jobs) - len(canceled) >= 100
    assert sum(job.attempts > 1 for job in jobs) >= 2
    async with asyncio.timeout(PATIENCE_S):
        while await gauges(url) != (0, 0) or prompts_in_hand(system) != [0]:
            await asyncio.sleep(0.1)
