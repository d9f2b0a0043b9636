"""The Lua transitions and their typed signatures.

Each file of `lua/` becomes one script: its first line (the flags), the prelude that all share, its own body; those that
are limited by tenant get `limits.lua` between the two, those that add to sessions `sessions.lua`.
Flags matter: a script without `allow-oom` is refused as a whole when the server's memory is full, so only
transitions that bring in new work (`submit`, `spend`, `approve`, `replay`) lack it; running jobs can always end.

The client sends a script by its hash and loads it again when the server has forgotten it (restart, flush,
fail-over).
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from redis.asyncio import Redis

from shared.contracts import JobStatus, Lane, Stage, Task
from shared.contracts.limits import UNBOUNDED, UNIT, Charge, Left, Limits, Standing
from shared.contracts.webhooks import Webhook
from shared.errors import AttemptsExhausted, DeadlineExceeded, JobError
from shared.jobs.estimates import Load, Outlook
from shared.jobs.placement import Placement
from shared.settings import QueueSettings

FOLDER = Path(__file__).parent / "lua"
PRELUDE = "prelude"
LIMITS = "limits"
SESSIONS = "sessions"
LIMITED = frozenset({"submit", "spend"})  # the scripts that ask for a tenant's limits
IN_SESSIONS = frozenset({"submit"})

_EXHAUSTED = AttemptsExhausted("The job was started as often as allowed, and no attempt came to an end.")
_EXPIRED = DeadlineExceeded("The job's deadline passed while it was waiting.")
_UNAPPROVED = DeadlineExceeded(
    "The prompt was not approved in time.", next_step="Submit it again and approve the prompt sooner."
)


@cache
def load_sources() -> Mapping[str, str]:
    """Return the text of every Lua file by its name, `prelude` among them."""
    return MappingProxyType({path.stem: path.read_text() for path in sorted(FOLDER.glob("*.lua"))})


@dataclass(frozen=True, slots=True)
class View:
    """A job as a script answers it; the outlook is None when it neither waits for a worker nor has one."""

    record: Mapping[str, str]
    outlook: Outlook | None


@dataclass(frozen=True, slots=True)
class ViewReply:
    """Outcome of a transition with the job as it is then, if the outcome comes with one.

    `limit`: what refuses the job, one of `Standing` or of its session; `wait_ms`: until it may be asked for again, -1
    when unknown.
    """

    outcome: str
    view: View | None = None
    drain_rate: float = 0.0
    limit: str = ""
    wait_ms: int = 0
    standing: Standing = UNBOUNDED


@dataclass(frozen=True, slots=True)
class ClaimReply:
    """A claimed job (`job_id` is None when none was found), the jobs that were dropped on the way, and how many are
    left in the stage."""

    job_id: str | None
    record: Mapping[str, str]
    waited_ms: int
    dropped: Sequence[str]
    left: int


@dataclass(frozen=True, slots=True)
class EndReply:
    """Outcome of what ends an attempt, and the attempt's length where it was ended by this call."""

    outcome: str
    spent_ms: int | None = None


@dataclass(frozen=True, slots=True)
class ReapReply:
    """Jobs that were taken or dropped as (id, stage, outcome), queue depths, number of dead letters."""

    outcomes: Sequence[tuple[str, Stage, str]]
    depths: Mapping[tuple[Stage, Lane], int]
    dead_letters: int


class Scripts:
    """The transitions of one queue."""

    def __init__(self, redis: Redis, settings: QueueSettings, namespace: str, sources: Mapping[str, str]) -> None:
        self.sources = sources
        self.base = f"{{{namespace}}}:"
        self._limits = (
            settings.lease_ms,
            settings.max_attempts,
            settings.max_queued,
            settings.max_events,
            settings.retention_s,
            settings.idempotency_s,
            settings.ageing_ms,
        )
        names = sources.keys() - {PRELUDE, LIMITS, SESSIONS}
        self._scripts = {name: redis.register_script(self.source(name)) for name in names}
        self._exhausted = _problem(_EXHAUSTED)
        self._expired = _problem(_EXPIRED)
        self._unapproved = _problem(_UNAPPROVED)

    def source(self, name: str) -> str:
        """Return the whole text of a script."""
        limits = self.sources[LIMITS] if name in LIMITED else ""
        sessions = self.sources[SESSIONS] if name in IN_SESSIONS else ""
        return self.compose(self.sources[name], limits, sessions)

    def compose(self, script: str, *fragments: str) -> str:
        """Return a script with everything that it needs between its flags and its body."""
        flags, _, body = script.partition("\n")
        return "\n".join((flags, self.sources[PRELUDE], *fragments, body))

    def arguments(self, *own: str | int) -> list[str | int]:
        """Return the arguments of a script: the limits, then its own."""
        return [*self._limits, *own]

    async def _call(self, name: str, *own: str | int) -> Any:
        return await self._scripts[name](keys=[self.base], args=self.arguments(*own))

    async def submit(
        self,
        *,
        job_id: str,
        tenant: str,
        stage: Stage,
        lane: Lane,
        batch_key: str,
        body_hash: str,
        idempotency_key: str,
        deadline_ms: int | None,
        later: Stage | None,
        request: str,
        prompt: str,
        limits: Limits,
        charge: Charge,
        task: Task,
        webhook: Webhook | None,
        placement: Placement | None,
    ) -> ViewReply:
        """Accept a job: `created`, `known` (by its idempotency key), `conflict`, `gone`, `limited`, `full`.

        With a placement also `no session` and `session full`.
        """
        turn: tuple[str | int, ...] = ("",)
        if placement is not None:
            bounds = (placement.max_turns, placement.max_bytes, placement.retention_s)
            turn = (placement.session_id, placement.record, *bounds)
        reply = await self._call(
            "submit",
            job_id,
            tenant,
            stage,
            lane,
            batch_key,
            body_hash,
            idempotency_key,
            "" if deadline_ms is None else deadline_ms,
            later or "",
            request,
            prompt,
            limits.requests_per_minute,
            limits.burst,
            limits.max_jobs,
            round(limits.units_per_day * UNIT),
            charge.prompt,
            charge.render,
            task,
            "" if webhook is None else webhook.url,
            "" if webhook is None else f" {' '.join(webhook.events)} ",
            *turn,
        )
        return _submit_reply(reply)

    async def recall(self, *, tenant: str, body_hash: str, idempotency_key: str) -> ViewReply:
        """Find the job of an idempotency key: `known`, `conflict`, `gone` or `unknown`."""
        return _view_reply(await self._call("recall", tenant, body_hash, idempotency_key))

    async def spend(self, *, tenant: str, limits: Limits) -> ViewReply:
        """Take a token of a tenant's bucket: `ok` or `limited`."""
        outcome, wait_ms, standing = await self._call("spend", tenant, limits.requests_per_minute, limits.burst)
        return ViewReply(outcome, limit="requests", wait_ms=wait_ms, standing=_standing(standing))

    async def claim(self, *, stage: Stage, worker: str, token: str, batch_keys: Collection[str]) -> ClaimReply:
        """Hand out the next job of a stage."""
        reply = await self._call("claim", stage, worker, token, self._expired, *batch_keys)
        if reply is None:
            return ClaimReply(None, {}, -1, (), 0)
        job_id, record, waited_ms, dropped, left = reply
        return ClaimReply(job_id, _pairs(record), waited_ms, dropped, left)

    async def emit(self, *, job_id: str, token: str, number: int, events: Sequence[tuple[str, str]]) -> str:
        """Append events: `ok`, `canceled` or `lost`."""
        flat = [part for event in events for part in event]
        answer: str = await self._call("emit", job_id, token, number, *flat)
        return answer

    async def renew(self, leases: Sequence[tuple[str, str]]) -> list[str]:
        """Renew the leases given as (job id, token): `ok`, `canceled` or `lost` for each."""
        answers: list[str] = await self._call("renew", *(part for lease in leases for part in lease))
        return answers

    async def advance(self, *, job_id: str, token: str, next_step: str, prompt: str) -> EndReply:
        """End the prompt stage: `ok`, `again`, `canceled` or `lost`."""
        return _end_reply(await self._call("advance", job_id, token, next_step, prompt))

    async def finish(self, *, job_id: str, token: str, images: str, prompt: str) -> EndReply:
        """End the job with its pictures: `ok`, `again`, `canceled` or `lost`."""
        return _end_reply(await self._call("finish", job_id, token, images, prompt))

    async def fail(self, *, job_id: str, token: str, retry: bool, problem: str) -> EndReply:
        """End a failed attempt: `failed`, `requeued`, `buried`, `again`, `canceled` or `lost`."""
        return _end_reply(await self._call("fail", job_id, token, "1" if retry else "0", problem, self._exhausted))

    async def release(self, *, job_id: str, token: str) -> EndReply:
        """Give a job back: `ok`, `again`, `canceled` or `lost`."""
        return _end_reply(await self._call("release", job_id, token))

    async def cancel(self, *, job_id: str, tenant: str) -> ViewReply:
        """End a job at its owner's wish: `canceled`, `unchanged` or `missing`."""
        return _view_reply(await self._call("cancel", job_id, tenant))

    async def approve(self, *, job_id: str, tenant: str, text: str | None, edited: str) -> ViewReply:
        """Let a held job be rendered: `ok`, `refused` or `missing`."""
        choice = "" if text is None else f"={text}"
        return _view_reply(await self._call("approve", job_id, tenant, choice, edited))

    async def replay(self, *, job_id: str) -> ViewReply:
        """Start a dead letter anew: `ok`, `missing` or `full`."""
        return _view_reply(await self._call("replay", job_id))

    async def read(self, *, job_id: str, tenant: str) -> View | None:
        """Read a job."""
        reply = await self._call("read", job_id, tenant)
        return None if reply is None else _view(reply)

    async def list_jobs(
        self, *, tenant: str, after: str, limit: int, status: JobStatus | None, task: Task | None
    ) -> tuple[Sequence[tuple[str, View]], str]:
        """Read a page of a tenant's jobs as (id, view), and the place after which the next one goes on ('': none)."""
        page, last = await self._call("list", tenant, after, limit, status or "", task or "")
        return [(job_id, _view(view)) for job_id, view in page], last

    async def reap(self) -> ReapReply:
        """Take jobs from silent workers, drop jobs whose time is over, measure the queues."""
        reply = await self._call("reap", self._exhausted, self._expired, self._unapproved)
        flat, *numbers = reply
        outcomes = [
            (job_id, Stage(stage), outcome)
            for job_id, stage, outcome in zip(flat[::3], flat[1::3], flat[2::3], strict=True)
        ]
        depths = {(stage, lane): numbers[2 * i + j] for i, stage in enumerate(Stage) for j, lane in enumerate(Lane)}
        return ReapReply(outcomes, depths, numbers[-1])

    async def announce(self, *, worker: str, announcement: str) -> None:
        """Renew a worker's announcement for one lease."""
        await self._call("announce", worker, announcement)

    async def workers(self) -> list[str]:
        """Read the announcements that have not expired."""
        announcements: list[str] = await self._call("workers")
        return announcements


def _problem(error: JobError) -> str:
    return error.to_problem().model_dump_json()


def _pairs(flat: Sequence[str]) -> dict[str, str]:
    return dict(zip(flat[::2], flat[1::2], strict=True))


def _view(reply: Sequence[Any]) -> View:
    record, flat, elapsed_ms = reply
    loads = [Load(earlier, running, float(mean_ms), _ratio(ms, units)) for earlier, running, mean_ms, ms, units in flat]
    return View(_pairs(record), Outlook(loads, None if elapsed_ms < 0 else elapsed_ms) if loads else None)


def _ratio(ms: str, units: str) -> float:
    return float(ms) / float(units) if float(units) > 0 else 0.0


def _view_reply(reply: Sequence[Any]) -> ViewReply:
    outcome, *rest = reply
    if outcome == "full":
        return ViewReply(outcome, drain_rate=float(rest[0]))
    return ViewReply(outcome, _view(rest[0]) if rest else None)


def _submit_reply(reply: Sequence[Any]) -> ViewReply:
    match reply:
        case ["created", view, standing]:
            return ViewReply("created", _view(view), standing=_standing(standing))
        case ["limited", limit, wait_ms, rate, standing]:
            return ViewReply("limited", None, float(rate), limit, wait_ms, _standing(standing))
        case ["session full", limit]:
            return ViewReply("session full", limit=limit)
        case _:
            return _view_reply(reply)


def _standing(reply: Sequence[int]) -> Standing:
    if not reply:  # of a call that came again: nothing was looked at
        return UNBOUNDED
    requests, requests_ms, jobs, units, units_ms = reply
    return Standing(
        requests=None if requests < 0 else Left(requests, math.ceil(requests_ms / 1_000)),
        jobs=None if jobs < 0 else Left(jobs),
        units=None if units < 0 else Left(units // UNIT, math.ceil(units_ms / 1_000)),
    )


def _end_reply(reply: Sequence[Any]) -> EndReply:
    outcome, *rest = reply
    return EndReply(outcome, rest[0] if rest else None)
