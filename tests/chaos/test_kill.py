"""kill -9 of every part in the middle of a job: the launcher starts it again, and the job succeeds, once."""

import os
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from clients.client import Client
from services.diffusion.snapshots import AT_RISK_CALLS
from shared.contracts import Event, EventType, JobStatus, Stage
from tests.processes import until
from tests.system import System, pid_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

LONG_STEPS = 150  # seconds of rendering, so that there is a middle
PATIENCE_S = 900.0
JOBS = 20


@pytest.fixture
def client(system: System) -> Iterator[Client]:
    with Client(system.run.url, patience_s=PATIENCE_S) as client:
        yield client
    system.wait_until_ready()


def starts(events: list[Event], stage: Stage) -> list[int]:
    """Return the attempts that were started at a stage, in order."""
    return [
        int(event.data["attempt"])
        for event in events
        if event.type is EventType.STARTED and event.data["stage"] == stage.value
    ]


def check_succeeded_once(client: Client, job_id: str) -> list[Event]:
    """Wait for the job's end, and return its events."""
    events = list(client.events(job_id))
    assert events[-1].type is EventType.SUCCEEDED
    assert sum(event.type.ends_stream for event in events) == 1
    assert len({event.id for event in events}) == len(events)
    assert client.get(job_id).status is JobStatus.SUCCEEDED
    return events


def until_event(client: Client, job_id: str, type: EventType, *, stage: Stage | None = None) -> Event:
    """Follow the job up to an event."""
    for event in client.events(job_id):
        if event.type is type and stage in (None, event.data.get("stage")):
            return event
        assert not event.type.ends_stream, f"{event} came first"
    raise AssertionError("the stream ended")


def engine_core(server: int) -> int:
    """Return vLLM's engine core, a child of its server."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            pid, rest = int(stat.parent.name), stat.read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue
        name, parent = rest.partition("(")[2].rpartition(")")[0], int(rest.rpartition(")")[2].split()[1])
        if parent == server and name.startswith("VLLM::Engine"):
            return pid
    raise AssertionError("vLLM has no engine core")


def started_again(system: System, service: str, before: int) -> bool:
    services = system.run.services
    return service in services and services[service].pid != before


@pytest.fixture(scope="module")
def undisturbed(system: System) -> str:
    """Return the digest of the long picture when nobody is killed."""
    with Client(system.run.url, patience_s=PATIENCE_S) as client:
        job_id = system.submit(prompt_mode="verbatim", num_inference_steps=LONG_STEPS, seed=5)
        check_succeeded_once(client, job_id)
        (image,) = client.get(job_id).images
        return image.sha256


@pytest.mark.parametrize("step", [0, 1, LONG_STEPS // 2, LONG_STEPS - 1])
def test_killed_diffusion_worker_loses_no_job_and_few_steps(
    system: System, client: Client, undisturbed: str, step: int
) -> None:
    job_id = system.submit(prompt_mode="verbatim", num_inference_steps=LONG_STEPS, seed=5)
    reached = 0
    for event in client.events(job_id):
        if event.type is EventType.STARTED:
            victim = pid_of(event.data["worker"])
        if event.type is EventType.RENDER_PROGRESS:
            reached = event.data["step"]
        if reached >= step and event.type is (EventType.RENDER_PROGRESS if step else EventType.STARTED):
            break
    os.kill(victim, signal.SIGKILL)
    (service,) = [name for name, running in system.run.services.items() if running.pid == victim]
    events = check_succeeded_once(client, job_id)
    assert starts(events, Stage.RENDER) == [1, 2]
    second = next(place for place, event in enumerate(events) if event.data.get("attempt") == 2)
    told = [event.data["step"] for event in events[:second] if event.type is EventType.RENDER_PROGRESS]
    goes_on = next(event.data for event in events[second:] if event.type is EventType.RENDER_PROGRESS)
    if max(told, default=0) > AT_RISK_CALLS:
        assert goes_on["resumed"]
        assert max(told) - goes_on["step"] <= AT_RISK_CALLS
    (image,) = client.get(job_id).images
    assert image.sha256 == undisturbed
    until(lambda: started_again(system, service, victim), what="another worker")


@pytest.mark.parametrize("part", ["server", "engine core"])
def test_killed_language_model_loses_no_job(system: System, client: Client, part: str) -> None:
    server = system.pid("mllm")
    core = engine_core(server)
    os.kill(core, signal.SIGSTOP)  # the prompt takes a moment only: this holds the job in its middle
    job_id = system.submit(num_inference_steps=2)
    until_event(client, job_id, EventType.STARTED, stage=Stage.PROMPT)
    os.kill(server if part == "server" else core, signal.SIGKILL)
    events = check_succeeded_once(client, job_id)
    assert starts(events, Stage.PROMPT) == [1, 2]
    assert starts(events, Stage.RENDER) == [1]
    assert started_again(system, "mllm", server)


def test_killed_queue_server_loses_no_job(system: System, client: Client) -> None:
    running = system.submit(prompt_mode="verbatim", num_inference_steps=LONG_STEPS)
    until_event(client, running, EventType.RENDER_PROGRESS)
    waiting = system.submit(num_inference_steps=2)
    before = system.pid("valkey")
    os.kill(before, signal.SIGKILL)
    for job_id in (running, waiting):
        check_succeeded_once(client, job_id)
    assert started_again(system, "valkey", before)


def test_killed_gateway_loses_no_job(system: System, client: Client) -> None:
    job_id = system.submit(prompt_mode="verbatim", num_inference_steps=LONG_STEPS)
    until_event(client, job_id, EventType.RENDER_PROGRESS)
    before = system.pid("gateway")
    os.kill(before, signal.SIGKILL)
    events = check_succeeded_once(client, job_id)
    assert starts(events, Stage.RENDER) == [1]
    assert started_again(system, "gateway", before)


def test_two_workers_share_the_jobs_and_none_runs_twice(system: System, client: Client) -> None:
    ids = [system.submit(prompt_mode="verbatim", num_inference_steps=30, seed=seed) for seed in range(JOBS)]
    workers: Counter[str] = Counter()
    for job_id in ids:
        events = check_succeeded_once(client, job_id)
        assert starts(events, Stage.RENDER) == [1]
        workers.update(event.data["worker"] for event in events if event.type is EventType.STARTED)
    assert sum(workers.values()) == JOBS
    assert len(workers) == 2, workers
