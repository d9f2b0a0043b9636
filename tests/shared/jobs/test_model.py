"""The real queue beside a plain model of its rules: whatever happens in whatever order, both say the same."""

import asyncio
import json
import uuid
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from shared.contracts import EventType, JobStatus, Lane, Stage
from shared.errors import InternalError, NotFound, QueueFull, RenderFailed
from shared.jobs import Claim, JobCanceled, JobQueue, LeaseLost, connect
from shared.settings import QueueSettings, RedisSettings
from tests.shared.jobs.model import ENDED, MAX_ATTEMPTS, MAX_QUEUED, Model, ModelJob
from tests.shared.jobs.steps import (
    check_consistency,
    claim,
    end_lease,
    image,
    pass_deadline,
    prompt,
    stored_events,
    submit,
)
from tests.valkey import Server, forget_namespace, leaked_keys

T = TypeVar("T")


@dataclass(frozen=True)
class Wish:
    """What a client submits."""

    tenant: str
    batch_key: str
    stage: Stage
    lane: Lane
    approve: bool
    deadline: bool
    idempotency_key: str | None


WISHES = st.builds(
    Wish,
    tenant=st.sampled_from(["a", "b", "c"]),
    batch_key=st.sampled_from(["x", "y"]),
    stage=st.sampled_from(Stage),
    lane=st.sampled_from(Lane),
    approve=st.sampled_from([False, False, True]),
    deadline=st.booleans(),
    idempotency_key=st.sampled_from([None, None, None, None, "k"]),
)


WORDS = ["claim again", "renew", "emit", "end", "end", "fail", "fail, try again", "release"]


class QueueMachine(RuleBasedStateMachine):
    """Does the same to both, and compares."""

    server: ClassVar[Server]

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.namespace = f"m{uuid.uuid4().hex[:12]}"
        self.redis = self.run(connect(RedisSettings(url=self.server.url, namespace=self.namespace)))
        queue_settings = QueueSettings(lease_ms=600_000, max_attempts=MAX_ATTEMPTS, max_queued=MAX_QUEUED, ageing_ms=0)
        self.queue = JobQueue(self.redis, queue_settings, self.namespace)
        self.model = Model()
        self.claims: list[Claim] = []
        self.counter = 0
        self.compared: set[str] = set()  # jobs that have ended, and whose events were looked at

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(coroutine)

    def teardown(self) -> None:
        with self.server.client() as client:
            leaked = leaked_keys(client, self.namespace)
            forget_namespace(client, self.namespace)
        self.run(self.redis.aclose())
        self.loop.close()
        assert not leaked

    def having(self, status: JobStatus) -> list[ModelJob]:
        return [job for job in self.model.jobs.values() if job.status is status]

    def owner_of(self, held: Claim) -> ModelJob | None:
        """Return the model's job when the claim is current."""
        job = self.model.jobs[held.job.id]
        return job if job.token == held.token and not job.silent else None

    @rule(wishes=st.lists(WISHES, min_size=1, max_size=8))
    def submits(self, wishes: list[Wish]) -> None:
        for wish in wishes:
            self.submit(wish)

    def submit(self, wish: Wish) -> None:
        self.counter += 1
        job_id = f"j{self.counter}"
        # The body is the same for all of a key, so that a repetition is a repetition.
        if wish.idempotency_key:
            wish = Wish(wish.tenant, wish.batch_key, Stage.RENDER, Lane.INTERACTIVE, False, False, wish.idempotency_key)
        approve = wish.approve and wish.stage is Stage.PROMPT
        call = submit(
            self.queue,
            job_id,
            stage=wish.stage,
            tenant=wish.tenant,
            batch_key=wish.batch_key,
            idempotency_key=wish.idempotency_key,
            lane=wish.lane,
            approve=approve,
            deadline_s=3_600 if wish.deadline else None,
        )
        known = self.model.keys.get((wish.tenant, wish.idempotency_key or ""))
        if known is not None:
            assert self.run(call).id == known
            return
        if self.model.full(wish.stage) or self.model.full(Stage.RENDER):
            try:
                self.run(call)
            except QueueFull:
                return
            raise AssertionError("a full queue took a job")
        self.run(call)
        job = ModelJob(job_id, wish.stage, wish.lane, wish.tenant, wish.batch_key, approve, wish.deadline)
        self.model.submit(job)
        if wish.idempotency_key:
            self.model.keys[wish.tenant, wish.idempotency_key] = job_id

    @rule(
        stage=st.sampled_from(Stage),
        keys=st.sampled_from([None, None, ["x"], ["y", "x"], ["z"]]),
        count=st.integers(1, 6),
    )
    def workers_claim(self, stage: Stage, keys: list[str] | None, count: int) -> None:
        for _ in range(count):
            self.claim(stage, keys)

    def claim(self, stage: Stage, keys: list[str] | None) -> None:
        token = uuid.uuid4().hex
        held = self.run(self.queue.claim(stage, worker="w", batch_keys=keys, token=token))
        expected = self.model.claim(stage, token, keys)
        assert (held and held.job.id) == (expected and expected.id)
        assert (held and held.attempt) == (expected and expected.attempts)
        if held is not None:
            self.claims.append(held)

    @precondition(lambda self: self.claims)
    @rule(data=st.data(), word=st.sampled_from(WORDS), current=st.booleans())
    def worker_speaks(self, data: st.DataObject, word: str, current: bool) -> None:
        """Let a worker, often one whose claim is lost, say something, and see whether it is taken."""
        claims = [held for held in self.claims if self.owner_of(held) is not None] if current else []
        held = data.draw(st.sampled_from(claims or self.claims))
        job = self.owner_of(held)
        events = [(EventType.PROMPT_DELTA, {"text": "x"})] * 2
        match word:
            case "claim again":
                if job is not None:
                    again = self.run(claim(self.queue, stage=job.stage, token=held.token))
                    assert (again.job.id, again.attempt) == (held.job.id, held.attempt)
                return
            case "renew":
                answer = "canceled" if self.model.jobs[held.job.id].status is JobStatus.CANCELED else "lost"
                expected = answer if job is None else "ok"
                assert self.run(self.queue.scripts.renew([(held.job.id, held.token)])) == [expected]
                return
            case "emit":
                call = held.emit_many(events)
            case "end":
                prompting = held.job.stage is Stage.PROMPT
                call = held.advance(prompt()) if prompting else held.finish([image()])
            case "fail":
                call = held.fail(RenderFailed("x"))
            case "fail, try again":
                call = held.fail(InternalError("x"), retry=True)
            case _:
                call = held.release()
        assert self.accepted(held, call) == (job is not None)
        if job is not None:
            self.model.hear(job, word)

    @precondition(lambda self: self.having(JobStatus.RUNNING))
    @rule(data=st.data(), times=st.integers(1, 4), noticed=st.booleans())
    def job_loses_its_workers(self, data: st.DataObject, times: int, noticed: bool) -> None:
        job = data.draw(st.sampled_from(self.having(JobStatus.RUNNING)))
        for _ in range(times):
            if job.status is JobStatus.RUNNING and not job.silent:
                self.run(end_lease(self.queue, job.id))
                job.silent = True
            if noticed:
                self.time_passes()
                self.claim(job.stage, [job.batch_key])

    @precondition(lambda self: self.having(JobStatus.QUEUED))
    @rule(data=st.data())
    def deadline_passes(self, data: st.DataObject) -> None:
        job = data.draw(st.sampled_from(self.having(JobStatus.QUEUED)))
        if job.has_deadline and not job.late:
            self.run(pass_deadline(self.queue, job.id))
            job.late = True

    @rule()
    def time_passes(self) -> None:
        silent = sorted(job.id for job in self.model.jobs.values() if job.silent)  # equal scores: by name
        assert self.run(self.queue.reap()) == self.model.reap(silent)

    @precondition(lambda self: self.model.jobs)
    @rule(data=st.data(), status=st.sampled_from(JobStatus))
    def somebody_decides(self, data: st.DataObject, status: JobStatus) -> None:
        """Approve a held job, replay a failed one, cancel any other."""
        job = data.draw(st.sampled_from(self.having(status) or list(self.model.jobs.values())))
        if job.status is JobStatus.AWAITING_APPROVAL:
            self.run(self.queue.approve(job.id, tenant=job.tenant))
            self.model.approve(job)
        elif job.status is JobStatus.FAILED:
            self.replay(job)
        else:
            self.model.cancel(job)
            assert self.run(self.queue.cancel(job.id, tenant=job.tenant)).status is job.status

    def replay(self, job: ModelJob) -> None:
        try:
            self.run(self.queue.replay(job.id))
        except NotFound:
            assert job.id not in self.model.dead
        except QueueFull:
            assert self.model.full(job.stage)
        else:
            assert job.id in self.model.dead
            self.model.replay(job)
            self.compared.discard(job.id)

    def accepted(self, held: Claim, call: Coroutine[Any, Any, None]) -> bool:
        """Make a worker's call; return whether it was taken."""
        canceled = self.model.jobs[held.job.id].status is JobStatus.CANCELED
        spoke_before = held.ended or held.lost.is_set()
        refusal: LeaseLost | None = None
        try:
            self.run(call)
        except LeaseLost as reason:
            refusal = reason
        if refusal is not None and not spoke_before:
            assert isinstance(refusal, JobCanceled) == canceled
        return refusal is None

    @invariant()
    def agrees_with_the_model(self) -> None:
        self.run(self.compare())

    async def compare(self) -> None:
        records = await check_consistency(self.queue)
        assert set(records) == set(self.model.jobs)
        for expected in self.model.jobs.values():
            record = records[expected.id]
            assert (record["status"], record["stage"]) == (expected.status, expected.stage)
            assert int(record["attempts"]) == expected.attempts
            assert (json.loads(record["error"])["code"] if "error" in record else None) == expected.error
            if expected.status is JobStatus.QUEUED:
                job = await self.queue.get(expected.id, tenant=expected.tenant)
                assert job.queue is not None
                assert job.queue.position == self.model.position(expected)

    @invariant()
    def events_agree_with_the_model(self) -> None:
        for expected in self.model.jobs.values():
            if expected.status in ENDED and expected.id not in self.compared:
                assert self.run(stored_events(self.queue, expected.id)) == expected.events
                self.compared.add(expected.id)
        letters = self.run(self.queue.dead_letters())
        assert {letter.id for letter in letters} == self.model.dead


def test_queue_agrees_with_its_model(start_server: Callable[..., Server], binary: Path) -> None:
    class Machine(QueueMachine):
        server = start_server(binary, appendfsync="no")  # thousands of steps; durability is another test's matter

    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=30,
            stateful_step_count=50,
            deadline=None,
            database=None,
            print_blob=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
