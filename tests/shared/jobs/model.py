"""The queue's rules without a server: dictionaries and lists, slow and plain.

`test_model` runs it beside the real queue. Nothing here has a clock: leases and deadlines end when the test says
so, and batch work is overdue as soon as it waits (`ageing_ms` is 0).
"""

from collections.abc import Collection
from dataclasses import dataclass, field

from shared.contracts import JobStatus, Lane, Stage

MAX_ATTEMPTS = 2
MAX_QUEUED = 10
PASSES = 3

ENDED = {JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELED}


@dataclass
class ModelJob:
    """What the model knows of a job."""

    id: str
    stage: Stage
    lane: Lane
    tenant: str
    batch_key: str
    approve: bool = False
    has_deadline: bool = False
    place: int = 0
    status: JobStatus = JobStatus.QUEUED
    attempts: int = 0
    token: str | None = None
    silent: bool = False  # its lease has ended
    late: bool = False  # its deadline has passed
    error: str | None = None
    events: list[str] = field(default_factory=lambda: ["job.queued"])


class Model:
    """The queue's rules."""

    def __init__(self) -> None:
        self.jobs: dict[str, ModelJob] = {}
        self.dead: set[str] = set()
        self.keys: dict[tuple[str, str], str] = {}
        self._turn = 0
        self._place = 0
        self._turns: dict[tuple[Stage, Lane, str], int] = {}
        self._passed = dict.fromkeys(Stage, 0)

    def queued(self, stage: Stage, lane: Lane | None = None) -> list[ModelJob]:
        """Return what waits at a stage, in the order of submission."""
        waiting = [
            job
            for job in self.jobs.values()
            if job.status is JobStatus.QUEUED and job.stage is stage and lane in {None, job.lane}
        ]
        return sorted(waiting, key=lambda job: job.place)

    def full(self, stage: Stage) -> bool:
        """Whether a stage takes no more."""
        return len(self.queued(stage)) >= MAX_QUEUED

    def position(self, job: ModelJob) -> int:
        """Return how many jobs of the stage were queued earlier."""
        return self.queued(job.stage).index(job)

    def submit(self, job: ModelJob) -> None:
        """Accept a job."""
        self._place += 1
        job.place = self._place
        self.jobs[job.id] = job
        self._enter(job)

    def claim(self, stage: Stage, token: str, keys: Collection[str] | None) -> ModelJob | None:
        """Hand out the job whose turn it is."""
        overdue = bool(self.queued(stage, Lane.BATCH))
        lanes = [Lane.INTERACTIVE, Lane.BATCH]
        if overdue and self._passed[stage] >= PASSES:
            lanes.reverse()
        for lane in lanes:
            while (job := self._first(stage, lane, keys)) is not None and job.late:
                self._end(job, JobStatus.FAILED, "deadline_exceeded")
                self._forget_absent_tenants()
            if job is None:
                continue
            job.status, job.token, job.attempts = JobStatus.RUNNING, token, job.attempts + 1
            job.events.append("job.started")
            self._turn += 1
            self._turns[stage, lane, job.tenant] = self._turn
            self._forget_absent_tenants()
            if lane is Lane.BATCH:
                self._passed[stage] = 0
            elif overdue:
                self._passed[stage] += 1
            return job
        return None

    def hear(self, job: ModelJob, word: str) -> None:
        """Take what the owner of a running job says."""
        match word:
            case "emit":
                job.events += ["prompt.delta"] * 2
            case "end" if job.stage is Stage.PROMPT:
                self._advance(job)
            case "end":
                self._end(job, JobStatus.SUCCEEDED, None)
            case "fail":
                self._end(job, JobStatus.FAILED, "render_failed")
            case "fail, try again":
                self._retry(job)
            case "release":
                job.attempts -= 1
                self._requeue(job)

    def approve(self, job: ModelJob) -> None:
        """Queue a held job for rendering."""
        self._render(job)

    def cancel(self, job: ModelJob) -> None:
        """End a job at its owner's wish."""
        if job.status not in ENDED:
            self._end(job, JobStatus.CANCELED, None)
            self._forget_absent_tenants()

    def reap(self, silent_in_order: list[str]) -> int:
        """Take jobs from silent workers, drop late ones."""
        for job_id in silent_in_order:
            self._retry(self.jobs[job_id])
        late = [job for job in self.jobs.values() if job.status is JobStatus.QUEUED and job.late]
        for job in late:
            self._end(job, JobStatus.FAILED, "deadline_exceeded")
        self._forget_absent_tenants()
        return len(silent_in_order) + len(late)

    def replay(self, job: ModelJob) -> None:
        """Start a dead letter anew."""
        self.dead.discard(job.id)
        self._place += 1
        job.place, job.attempts, job.error = self._place, 0, None
        job.late = job.has_deadline = False
        job.events.clear()
        self._requeue(job)

    def _advance(self, job: ModelJob) -> None:
        job.token = None
        job.events.append("prompt.completed")
        if job.approve:
            job.status = JobStatus.AWAITING_APPROVAL
            job.events.append("job.awaiting_approval")
        else:
            self._render(job)

    def _retry(self, job: ModelJob) -> None:
        if job.attempts < MAX_ATTEMPTS:
            self._requeue(job)
        else:
            self.dead.add(job.id)
            self._end(job, JobStatus.FAILED, "attempts_exhausted")

    def _render(self, job: ModelJob) -> None:
        job.stage, job.attempts = Stage.RENDER, 0
        self._requeue(job)

    def _requeue(self, job: ModelJob) -> None:
        job.status, job.token, job.silent = JobStatus.QUEUED, None, False
        job.events.append("job.queued")
        self._enter(job)

    def _enter(self, job: ModelJob) -> None:
        self._turn += 1
        self._turns.setdefault((job.stage, job.lane, job.tenant), self._turn)

    def _end(self, job: ModelJob, status: JobStatus, error: str | None) -> None:
        job.status, job.token, job.error, job.silent = status, None, error, False
        job.events.append(f"job.{status}")

    def _first(self, stage: Stage, lane: Lane, keys: Collection[str] | None) -> ModelJob | None:
        waiting = [job for job in self.queued(stage, lane) if keys is None or job.batch_key in keys]
        if not waiting:
            return None
        tenant = min((job.tenant for job in waiting), key=lambda name: self._turns[stage, lane, name])
        return next(job for job in waiting if job.tenant == tenant)

    def _forget_absent_tenants(self) -> None:
        present = {(job.stage, job.lane, job.tenant) for stage in Stage for job in self.queued(stage)}
        self._turns = {key: turn for key, turn in self._turns.items() if key in present}
