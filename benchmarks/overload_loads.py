"""The loads of `benchmarks.overload`, and what they see."""

import asyncio
import bisect
import itertools
import time
from collections.abc import AsyncIterator, Coroutine, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np

from benchmarks.overload_system import System
from shared.contracts import TERMINAL, Job, JobList
from tests.gateway.hostile.bodies import Body, bodies
from tests.gateway.hostile.pictures import Sent, pictures

BODY = {"instruction": "a red house", "prompt_mode": "verbatim"}
TIMEOUT_S = 120.0


@dataclass(frozen=True, slots=True)
class Overload:
    """What came of more requests than there is capacity for."""

    offered_per_s: float
    peak_per_s: float
    goodput_per_s: float
    refused: int
    refused_p99_ms: float
    retry_after_off_p50: float
    retry_after_within: float
    memory_growth: float
    accepted: int
    finished: int
    failed: int


@dataclass(frozen=True, slots=True)
class Beside:
    """Latencies of somebody's calls, alone and beside a load, in ms."""

    what: str
    quantile: int
    alone_ms: float
    beside_ms: float
    calls: int

    @property
    def ratio(self) -> float:
        """How much longer they take beside it."""
        return self.beside_ms / self.alone_ms


@asynccontextmanager
async def client(system: System, tenant: str) -> AsyncIterator[httpx.AsyncClient]:
    """Yield a client with the tenant's key."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=512)
    headers = {"Authorization": f"Bearer {system.keys[tenant]}"}
    async with httpx.AsyncClient(
        base_url=system.url, headers=headers, timeout=TIMEOUT_S, limits=limits, trust_env=False
    ) as http:
        yield http


async def overload(system: System, *, capacity_per_s: float, times: float, duration_s: float, queue: int) -> Overload:
    """Fill the queue, offer `times` the capacity for a while, then let everything end."""
    accepted: list[str] = []
    refusals: list[tuple[float, float, float]] = []  # (Unix time, ms to answer, Retry-After in s)
    failures: list[int] = []
    numbers = itertools.count()

    async def submit(http: httpx.AsyncClient) -> None:
        started = time.perf_counter()
        headers = {"Idempotency-Key": f"overload-{next(numbers)}"}
        answer = await http.post("/v1/generations", json=BODY, headers=headers)
        took_ms = (time.perf_counter() - started) * 1e3
        if answer.status_code == 202:
            accepted.append(answer.json()["id"])
        elif answer.status_code == 429:
            refusals.append((time.time(), took_ms, float(answer.headers["retry-after"])))
        else:
            failures.append(answer.status_code)

    async with client(system, "other") as http:
        while not refusals:
            await asyncio.gather(*(submit(http) for _ in range(20)))
        await asyncio.sleep(5)  # until the drain rate is that of now
        refusals.clear()
        memory_mb, begun_s = system.memory_mb, time.time()
        offered_per_s = capacity_per_s * times
        sent = [
            asyncio.create_task(_at(begun_s + number / offered_per_s, submit(http)))
            for number in range(round(offered_per_s * duration_s))
        ]
        await asyncio.gather(*sent)
        ended_s, grown_mb = time.time(), system.memory_mb
        jobs = await _all_ended(http, accepted)
    ends = sorted(job.updated_at for job in jobs)
    inside = bisect.bisect(ends, ended_s) - bisect.bisect(ends, begun_s)
    drained = ends[bisect.bisect(ends, ended_s) :]
    waits = [(after_s, _wait_s(ends, at_s, queue // 10)) for at_s, _, after_s in refusals]
    off = [after_s / wait_s - 1 for after_s, wait_s in waits if wait_s is not None]
    return Overload(
        offered_per_s=offered_per_s,
        peak_per_s=len(drained) / (drained[-1] - ended_s),
        goodput_per_s=inside / (ended_s - begun_s),
        refused=len(refusals),
        refused_p99_ms=float(np.percentile([took_ms for _, took_ms, _ in refusals], 99)),
        retry_after_off_p50=float(np.median(np.abs(off))),
        retry_after_within=float(np.mean(np.abs(off) <= 0.3)),
        memory_growth=grown_mb / memory_mb - 1,
        accepted=len(accepted),
        finished=len(jobs),
        failed=len(failures),
    )


async def _at(time_s: float, work: Coroutine[Any, Any, None]) -> None:
    await asyncio.sleep(max(0.0, time_s - time.time()))
    await work


def _wait_s(ends: list[float], at_s: float, count: int) -> float | None:
    """Return how long it took from a moment until so many jobs had ended, which is what a refusal estimates."""
    place = bisect.bisect(ends, at_s) + count - 1
    return ends[place] - at_s if place < len(ends) else None


async def _all_ended(http: httpx.AsyncClient, job_ids: Iterable[str]) -> list[Job]:
    """Return the records of the jobs when all have ended."""
    waiting, ended = set(job_ids), list[Job]()
    while waiting:
        await asyncio.sleep(1)
        after: str | None = None
        while True:
            answer = await http.get("/v1/jobs", params={"limit": 100, **({"after": after} if after else {})})
            page = JobList.model_validate_json(answer.content)
            for job in page.data:
                if job.id in waiting and job.status in TERMINAL:
                    waiting.remove(job.id)
                    ended.append(job)
            after = page.next
            if after is None:
                break
    return ended


async def _calls(http: httpx.AsyncClient, duration_s: float, connections: int) -> list[float]:
    """Return the latencies of jobs that are waited for, one after the other on each connection, in ms."""
    took_ms: list[float] = []
    end_s = time.monotonic() + duration_s

    async def call() -> None:
        while not took_ms or time.monotonic() < end_s:
            started = time.perf_counter()
            answer = await http.post("/v1/generations", json=BODY, headers={"Prefer": "wait=60"})
            answer.raise_for_status()
            took_ms.append((time.perf_counter() - started) * 1e3)

    await asyncio.gather(*(call() for _ in range(connections)))
    return took_ms


async def flood(system: System, *, duration_s: float, connections: int, times: int) -> Beside:
    """Measure a tenant's calls alone, and while another one makes `times` as many."""
    async with client(system, "victim") as victim, client(system, "other") as other:
        await _calls(victim, 1, connections)
        alone = await _calls(victim, duration_s, connections)
        flooding = asyncio.create_task(_calls(other, duration_s + 2, connections * times))
        await asyncio.sleep(1)
        beside = await _calls(victim, duration_s, connections)
        await flooding
    return _beside(f"another tenant with {times} times the calls", 95, alone, beside)


async def followers(system: System, *, duration_s: float, count: int) -> tuple[Beside, float]:
    """Measure calls alone and beside `count` open event streams; also in how many ms news reach all of those."""
    async with client(system, "victim") as victim, client(system, "other") as other:
        await _calls(victim, 1, 1)
        alone = await _calls(victim, duration_s, 1)
        held = (await other.post("/v1/generations", json={**BODY, "lane": "batch"})).json()["id"]
        streams = [await _follow(system, held) for _ in range(count)]
        beside = await _calls(victim, duration_s, 1)
        started = time.perf_counter()
        await asyncio.gather(other.post(f"/v1/jobs/{held}/cancel"), *(_last(reader) for reader, _ in streams))
        news_ms = (time.perf_counter() - started) * 1e3
        for _, writer in streams:
            writer.close()
        await asyncio.gather(*(writer.wait_closed() for _, writer in streams), return_exceptions=True)
    return _beside(f"{count:,} event streams", 99, alone, beside), news_ms


async def _follow(system: System, job_id: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", system.port)
    head = f"GET /v1/jobs/{job_id}/events HTTP/1.1\r\nHost: gateway\r\nAuthorization: Bearer {system.keys['other']}\r\n"
    writer.write(head.encode() + b"Accept: text/event-stream\r\n\r\n")
    await reader.readuntil(b"event: job.started")
    return reader, writer


async def _last(reader: asyncio.StreamReader) -> None:
    await reader.readuntil(b"event: job.canceled")


async def hostile(system: System, *, duration_s: float) -> Beside:
    """Measure a tenant's calls alone, and while another one sends what `tests/gateway/hostile` holds."""
    async with client(system, "victim") as victim, client(system, "other") as other:
        corpus = await asyncio.to_thread(lambda: (list(pictures()), list(bodies())))
        await _calls(victim, 1, 2)
        alone = await _calls(victim, duration_s, 2)
        sending = asyncio.create_task(_send(other, corpus))
        beside = await _calls(victim, duration_s, 2)
        sending.cancel()
        with suppress(asyncio.CancelledError):
            await sending
    return _beside("hostile pictures and bodies", 99, alone, beside)


async def _send(http: httpx.AsyncClient, corpus: tuple[Sequence[Sent], Sequence[Body]]) -> None:
    sent_pictures, sent_bodies = corpus
    while True:
        for picture in sent_pictures:
            await http.post("/v1/images", content=picture.data, headers={"Content-Type": picture.media_type})
        for body in sent_bodies:
            headers = {**body.headers, **({"Content-Type": body.media_type} if body.media_type is not None else {})}
            headers.pop("Prefer", None)
            with suppress(httpx.TransportError):
                await http.post(body.path, content=body.data, headers=headers)


def _beside(what: str, quantile: int, alone: list[float], beside: list[float]) -> Beside:
    return Beside(
        what, quantile, float(np.percentile(alone, quantile)), float(np.percentile(beside, quantile)), len(beside)
    )
