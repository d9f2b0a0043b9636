"""The real process: help, refusals, phases, drain, and what happens when it is killed."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from services.diffusion.canvas import Canvas
from services.diffusion.engine import Engine
from services.diffusion.loading import LoadedModel
from services.diffusion.restoration import checkpoints as restoration
from services.diffusion.restoration.config import RestorationConfig
from services.diffusion.restoration.network import DiffRIRS2
from services.diffusion.service import DEAD_DEVICE_STATUS
from shared.artifacts import FolderStore
from shared.contracts import Event, EventType, GenerationPrompt, JobStatus, Phase, Scheduler, Stage, Task
from shared.jobs import DEFAULT_TENANT, JobQueue
from shared.media import ImageLimits, decode_image
from shared.settings import DiffusionSettings, QueueSettings, RedisSettings
from tests.ports import free_port
from tests.services.diffusion.jobs import (
    PAUSE_S,
    WAIT_S,
    ended,
    history,
    is_step,
    job_request,
    submit,
    until,
)
from tests.services.diffusion.pictures import render, request_for
from tests.services.diffusion.sources import keep, oval, picture
from tests.valkey import Server

ROOT = Path(__file__).parents[3]
MAIN = ["-m", "services.diffusion"]
LEASE_MS = 3_000

# A device that breaks at the first picture: the profile has passed by then.
BREAK_DEVICE = """
import sys
import torch
import services.diffusion.engine as engine
from services.diffusion.__main__ import main

def predict(*_):
    raise torch.AcceleratorError("CUDA error: unspecified launch failure")

engine.predict = predict
sys.exit(main([]))
"""

# A worker that is killed at one place of a picture's way, where no event tells that it is there.
DIES_AT = """
import os
import signal
import sys
import services.diffusion.{module} as module
from services.diffusion.__main__ import main

def dies(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

assert hasattr(module, {name!r})
module.{name} = dies
sys.exit(main([]))
"""

Process = subprocess.Popen[bytes]
Start = Callable[..., Process]


@pytest.fixture
def queue_settings() -> QueueSettings:
    """Return settings under which a dead worker's job is soon another's."""
    return QueueSettings(lease_ms=LEASE_MS)


@pytest.fixture
def start(redis_settings: RedisSettings, mini: Path, tmp_path: Path) -> Iterator[Start]:
    """Yield a function that starts a worker process."""
    processes: list[Process] = []

    def start(*arguments: str, **settings: str) -> Process:
        environment = {name: value for name, value in os.environ.items() if not name.upper().startswith("LLMGA_")}
        environment |= {
            "LLMGA_HOME": str(tmp_path / "home"),
            "LLMGA_DEVICE": "cpu",
            "LLMGA_REDIS__URL": redis_settings.url,
            "LLMGA_REDIS__NAMESPACE": redis_settings.namespace,
            "LLMGA_QUEUE__LEASE_MS": str(LEASE_MS),
            "LLMGA_DIFFUSION__MODELS": json.dumps({"mini": str(mini)}),
            "LLMGA_DIFFUSION__METRICS_PORT": "0",
        }
        environment |= {f"LLMGA_{name}": value for name, value in settings.items()}
        with (tmp_path / f"worker-{len(processes)}.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, *(arguments or MAIN)], cwd=ROOT, env=environment, stdout=log, stderr=log
            )
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.wait()


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    """Return the processes' artifact store."""
    folder = tmp_path / "home" / "artifacts"
    folder.mkdir(parents=True)
    return FolderStore(folder, retention_s=3_600)


async def ready(queue: JobQueue, count: int = 1) -> None:
    """Return when so many workers are ready."""
    for _ in range(int(WAIT_S / PAUSE_S)):
        workers = await queue.workers()
        if sum(worker.phase is Phase.READY for worker in workers) >= count:
            return
        await asyncio.sleep(PAUSE_S)
    raise AssertionError("the workers did not become ready")


async def exit_status(process: Process) -> int:
    """Return the exit status when the process has ended."""
    return await asyncio.to_thread(process.wait, WAIT_S)


def pid_of(worker: str) -> int:
    """Return the process id in a worker's name."""
    return int(worker.split("-")[-2])


def get(port: int, path: str) -> tuple[int, str]:
    """Return (status, body) of the status port; (0, "") while it is closed."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()
    except OSError:
        return 0, ""


def test_help_answers_at_once_and_loads_no_model_library() -> None:
    started = time.monotonic()
    code = (
        "import sys; sys.argv = ['x', '-h']; import runpy; runpy.run_module('services.diffusion', run_name='__main__')"
    )
    watched = f"import atexit, sys; atexit.register(lambda: print('torch' in sys.modules)); {code}"
    done = subprocess.run([sys.executable, "-c", watched], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "LLMGA_DIFFUSION__MODELS" in done.stdout
    assert done.stdout.rstrip().endswith("False")
    assert time.monotonic() - started < WAIT_S


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"DIFFUSION__MODELS": "{}"}, "LLMGA_DIFFUSION__MODELS names no model"),
        ({"DIFUSION__MODELS": "{}"}, "did you mean LLMGA_DIFFUSION__MODELS?"),
        ({"DIFFUSION__DEFAULT_MODEL": "other"}, "LLMGA_DIFFUSION__DEFAULT_MODEL must be a name"),
        ({"DIFFUSION__MODELS": '{"mini": "/nowhere"}'}, "/nowhere is not a folder"),
    ],
)
def test_a_set_up_that_cannot_work_ends_with_status_two(
    start: Start, tmp_path: Path, settings: dict[str, str], words: str
) -> None:
    status = start(**settings).wait(WAIT_S)
    assert words in (tmp_path / "worker-0.log").read_text()
    assert status == 2


def test_a_server_that_may_lose_jobs_ends_it_with_status_two(
    start: Start, tmp_path: Path, start_server: Callable[..., Server]
) -> None:
    status = start(REDIS__URL=start_server(appendfsync="no").url).wait(WAIT_S)
    assert "appendfsync" in (tmp_path / "worker-0.log").read_text()
    assert status == 2


async def test_it_tells_its_phases_and_drains_on_sigterm(
    start: Start, queue: JobQueue, store: FolderStore, tmp_path: Path
) -> None:
    port = free_port()
    process = start(DIFFUSION__METRICS_PORT=str(port))
    phases: list[Phase] = []
    for _ in range(int(WAIT_S / PAUSE_S)):
        phases += [worker.phase for worker in await queue.workers()]
        if Phase.READY in phases:
            break
        if phases and phases[-1] is Phase.LOADING:
            status, body = await asyncio.to_thread(get, port, "/readyz?verbose")
            assert status == 503 or Phase.READY.value in body
        await asyncio.sleep(PAUSE_S)
    assert phases[0] in {Phase.STARTING, Phase.LOADING, Phase.WARMING_UP}
    assert phases[-1] is Phase.READY
    assert (await asyncio.to_thread(get, port, "/readyz"))[0] == 200
    assert (await asyncio.to_thread(get, port, "/livez"))[0] == 200
    (worker,) = await queue.workers()
    assert worker.stage is Stage.RENDER
    assert [model.name for model in worker.models] == ["mini"]
    assert worker.models[0].default
    assert worker.free == DiffusionSettings().max_jobs

    running = await submit(queue, job_request(num_inference_steps=60))
    await until(queue, running, is_step(1))
    process.send_signal(signal.SIGTERM)
    job = await ended(queue, running)
    assert await exit_status(process) == 0
    assert job.status is JobStatus.SUCCEEDED
    assert job.attempts == 1
    assert await queue.workers() == []
    assert "llmga_diffusion_steps_total" not in (tmp_path / "worker-0.log").read_text()

    later = await submit(queue)
    assert (await queue.get(later)).status is JobStatus.QUEUED, "nothing is claimed while draining"
    await queue.cancel(later)


async def test_two_workers_share_jobs_and_one_goes_on_for_the_other(
    start: Start, queue: JobQueue, store: FolderStore, engine: Engine, model: LoadedModel
) -> None:
    processes = {process.pid: process for process in (start(DIFFUSION__MAX_JOBS="2"), start(DIFFUSION__MAX_JOBS="2"))}
    await ready(queue, 2)
    jobs = [await submit(queue, job_request(seed=seed, num_inference_steps=30)) for seed in range(4)]
    owners = set()
    for job_id in jobs:
        told = await history(queue, job_id)
        owners.add(next(event.data["worker"] for event in told if event.type is EventType.STARTED))
        assert told[-1].type is EventType.SUCCEEDED
    assert len(owners) == 2

    job_id = await submit(queue, job_request(seed=5, num_inference_steps=100))
    started = await until(queue, job_id, lambda event: event.type is EventType.STARTED)
    await until(queue, job_id, is_step(10))
    owner = processes[pid_of(started.data["worker"])]
    owner.kill()
    job = await ended(queue, job_id)
    assert job.status is JobStatus.SUCCEEDED
    assert job.attempts == 2
    told = await history(queue, job_id)
    second = [event.data["worker"] for event in told if event.type is EventType.STARTED][1]
    assert pid_of(second) in processes.keys() - {owner.pid}
    data, _ = store.get(job.images[0].id, tenant=DEFAULT_TENANT)
    expected = await render(
        engine, request_for(model, "a red circle at night", seed=5, steps=100, scheduler=Scheduler.DPMPP_2M)
    )
    assert np.array_equal(decode_image(data, ImageLimits()), expected)


@pytest.mark.deep
async def test_an_inpaint_whose_worker_is_killed_is_the_same_picture(
    start: Start, queue: JobQueue, store: FolderStore, engine: Engine, model: LoadedModel
) -> None:
    processes = {process.pid: process for process in (start(), start())}
    await ready(queue, 2)
    before, mask = picture(150, 90), oval(150, 90).astype(np.uint8) * 255
    job_id = await submit(
        queue,
        job_request(
            task=Task.INPAINT,
            image=keep(store, before),
            mask=keep(store, mask),
            num_inference_steps=100,
            scheduler=Scheduler.EULER_ANCESTRAL,
        ),
    )
    started = await until(queue, job_id, lambda event: event.type is EventType.STARTED)
    await until(queue, job_id, is_step(50))
    processes[pid_of(started.data["worker"])].kill()
    job = await ended(queue, job_id)
    assert (job.status, job.attempts) == (JobStatus.SUCCEEDED, 2)
    told = await history(queue, job_id)
    assert any(event.data.get("resumed") for event in told)
    canvas = Canvas(before, mask, (128, 128), job.request.feather_px)
    expected = await render(
        engine,
        request_for(
            model,
            "a red circle at night",
            encoding=job.request.prompt_encoding,
            seed=7,
            steps=100,
            scheduler=Scheduler.EULER_ANCESTRAL,
            source=canvas.source(),
        ),
    )
    data, _ = store.get(job.images[0].id, tenant=DEFAULT_TENANT)
    assert np.array_equal(decode_image(data, ImageLimits()), canvas.blended(expected))


def is_in_phase(event: Event, start: int, end: int) -> bool:
    """Return whether a picture has made so many steps, and not yet those of the next phase."""
    return event.type is EventType.RENDER_PROGRESS and start <= event.data["step"] < end


EDIT_STEPS = 10  # beside the ten maps of the mask, as many in and out of noise
KILLED: dict[str, tuple[Task, Callable[[Event], bool]]] = {
    "an edit, at its mask": (Task.EDIT, lambda event: is_in_phase(event, 2, 10)),
    "an edit, on the way into noise": (Task.EDIT, lambda event: is_in_phase(event, 12, 20)),
    "an edit, on the way out": (Task.EDIT, lambda event: is_in_phase(event, 22, 30)),
    "an inpaint, while it is painted": (Task.INPAINT, lambda event: is_in_phase(event, 4, EDIT_STEPS)),
    "an inpaint, while it is restored": (Task.INPAINT, lambda event: event.type is EventType.RESTORE_STARTED),
}


@pytest.mark.deep
@pytest.mark.timeout(3600)
async def test_a_worker_that_is_killed_in_any_phase_costs_nobody_a_picture(
    start: Start, queue: JobQueue, store: FolderStore, tmp_path: Path
) -> None:
    slow = RestorationConfig(scale=1, dim=48, num_blocks=(8, 1, 1, 1), num_refinement_blocks=8)  # seconds of work
    restoration.save(DiffRIRS2(slow), tmp_path / "restoration")
    settings = {"DIFFUSION__RESTORATION": str(tmp_path / "restoration")}
    processes = {process.pid: process for process in (start(**settings), start(**settings))}
    image, mask = keep(store, picture(256, 256)), keep(store, oval(256, 256).astype(np.uint8) * 255)
    common = {"image": image, "size": "256x256", "num_inference_steps": EDIT_STEPS, "restore": "auto"}
    requests = {
        Task.INPAINT: job_request(task=Task.INPAINT, mask=mask, **common),
        Task.EDIT: job_request(
            task=Task.EDIT,
            source_prompt="a red circle",
            edit_strength=0.75,
            source_guidance_scale=3.5,
            **common | {"scheduler": Scheduler.DPMPP_2M_SDE},
        ),
    }
    captions = GenerationPrompt(text="a blue circle", source="verbatim", source_caption="a red circle")
    await ready(queue, 2)
    whole = {task: await ended(queue, await submit(queue, request, captions)) for task, request in requests.items()}
    for what, (task, is_there) in KILLED.items():
        job_id = await submit(queue, requests[task], captions)
        started = await until(queue, job_id, lambda event: event.type is EventType.STARTED)
        await until(queue, job_id, is_there)
        owner = processes.pop(pid_of(started.data["worker"]))
        owner.kill()
        job = await ended(queue, job_id)
        assert (job.status, job.attempts) == (JobStatus.SUCCEEDED, 2), what
        assert job.images == whole[task].images, what
        another = start(**settings)
        processes[another.pid] = another
        await ready(queue, 2)


@pytest.mark.parametrize(
    "place",
    [
        "engine.decode_latents",
        *(
            pytest.param(place, marks=pytest.mark.deep)
            for place in ("engine.encode_source", "engine.encode_prompts", "finishing.mixed", "consumer.encode_file")
        ),
    ],
)
async def test_a_worker_that_is_killed_between_steps_costs_nobody_a_picture(
    start: Start, queue: JobQueue, store: FolderStore, tmp_path: Path, place: str
) -> None:
    small = RestorationConfig(scale=1, dim=16, num_blocks=(1, 1, 1, 1), num_refinement_blocks=1)
    restoration.save(DiffRIRS2(small), tmp_path / "restoration")
    settings = {"DIFFUSION__RESTORATION": str(tmp_path / "restoration")}
    module, name = place.split(".")
    dying = start("-c", DIES_AT.format(module=module, name=name), **settings)
    await ready(queue)
    inputs = {"image": keep(store, picture(150, 90)), "mask": keep(store, oval(150, 90).astype(np.uint8) * 255)}
    request = job_request(task=Task.INPAINT, restore="on", num_inference_steps=12, **inputs)
    job_id = await submit(queue, request)
    assert await exit_status(dying) == -signal.SIGKILL
    start(**settings)
    job = await ended(queue, job_id)
    assert (job.status, job.attempts) == (JobStatus.SUCCEEDED, 2)
    again = await history(queue, job_id)
    second = [event.type for event in again].index(EventType.STARTED, 2)
    steps = [event for event in again[second:] if event.type is EventType.RENDER_PROGRESS]
    if "encode_" not in name or module == "consumer":
        assert steps[0].data["resumed"]
        assert steps[0].data["step"] >= 9  # of twelve: without the snapshot of the ninth the twelfth is not made
    undisturbed = await ended(queue, await submit(queue, request))
    assert job.images == undisturbed.images


async def test_the_death_of_the_device_thread_ends_the_process_and_the_job_goes_on_elsewhere(
    start: Start, queue: JobQueue, store: FolderStore
) -> None:
    broken = start("-c", BREAK_DEVICE)
    await ready(queue)
    job_id = await submit(queue)
    assert await exit_status(broken) == DEAD_DEVICE_STATUS
    start()
    job = await ended(queue, job_id)
    assert job.status is JobStatus.SUCCEEDED
    assert job.attempts == 2


async def test_it_ends_in_order_while_it_loads(start: Start, queue: JobQueue) -> None:
    process = start()
    seen = False
    for _ in range(int(WAIT_S / PAUSE_S)):
        seen = bool(await queue.workers())
        if seen:
            break
        await asyncio.sleep(PAUSE_S)
    assert seen
    process.send_signal(signal.SIGTERM)
    assert await exit_status(process) == 0
    assert await queue.workers() == []
