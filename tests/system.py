"""A whole system as a user starts it: `llmga up` in a process of its own, with everything real below it."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from clients.local.home import Run, read_run
from shared.contracts import Announcement, Phase, Stage
from tests.processes import is_running, until

START_S = 900.0  # vLLM takes half a minute on a quiet machine, and minutes on a busy one
ANSWER_S = 300.0
MODELS = ["llmga-tiny", "llmga-tiny-sd15", "llmga-tiny-sd15-inpainting"]  # of the trained pair
RENDER_WORKERS = 2
LEASE_MS = 8_000  # half of the usual: each test that kills a worker waits for one


class System:
    """A running system and a plain HTTP client of it."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.output = home.parent / "up.log"
        command = [sys.executable, "-m", "clients.cli", "up", "--port", "0", "--workers", str(RENDER_WORKERS)]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("LLMGA_")}
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                command,
                env=environment | {"LLMGA_HOME": str(home), "LLMGA_QUEUE__LEASE_MS": str(LEASE_MS)},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        try:
            until(self._has_started, limit_s=START_S, what="the start of the system")
            self.http = httpx.Client(base_url=self.run.url, timeout=ANSWER_S, trust_env=False)
            self.wait_until_ready()
        except BaseException:
            self.process.kill()  # the guardian ends the rest
            self.process.wait()
            raise

    def _has_started(self) -> bool:
        assert self.process.poll() is None, self.output.read_text()
        return read_run(self.home) is not None

    @property
    def run(self) -> Run:
        """What `run.json` says now."""
        run = read_run(self.home)
        assert run is not None, self.output.read_text()
        return run

    def pid(self, service: str) -> int:
        """Return the present process of a service."""
        return self.run.services[service].pid

    def workers(self) -> list[Announcement]:
        """Return what the live workers say; none while the gateway or the queue does not answer."""
        try:
            answer = self.http.get("/readyz", params={"verbose": ""})
        except httpx.TransportError:
            return []
        return [Announcement.model_validate(worker) for worker in answer.json().get("workers", [])]

    def is_ready(self) -> bool:
        """Whether every process that should be there takes jobs."""
        ready = [worker for worker in self.workers() if worker.phase is Phase.READY]
        pids = {pid_of(worker.worker) for worker in ready}
        expected = {self.pid(name) for name in self.run.services if name.startswith(("diffusion", "mllm"))}
        stages = [worker.stage for worker in ready]
        return len(expected) == RENDER_WORKERS + 1 and pids == expected and stages.count(Stage.RENDER) == RENDER_WORKERS

    def wait_until_ready(self) -> None:
        """Wait until every process that should be there takes jobs."""

        def ready() -> bool:
            assert self.process.poll() is None, self.output.read_text()
            return read_run(self.home) is not None and self.is_ready()

        until(ready, limit_s=START_S, what="a ready system")

    def submit(self, instruction: str = "draw a snowman at night", **request: Any) -> str:
        """Submit a request and return the job's id."""
        answer = self.http.post("/v1/generations", json={"instruction": instruction, **request})
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])

    def close(self) -> None:
        """Stop the system as Ctrl-C does, and make sure that nothing stays."""
        pids = [service.pid for service in self.run.services.values()]
        self.http.close()
        self.process.send_signal(signal.SIGINT)
        try:
            assert self.process.wait(ANSWER_S) == 0, self.output.read_text()
        finally:
            self.process.kill()
            self.process.wait()
        assert not [pid for pid in pids if is_running(pid)]


def pid_of(worker: str) -> int:
    """Return the process of a worker by its name, `<host>-<pid>-<random>`."""
    return int(worker.rsplit("-", 2)[1])


@pytest.fixture(scope="session")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """Yield the run's system; what a test breaks in it must be whole again when the test ends."""
    system = System(tmp_path_factory.mktemp("system") / "home")
    yield system
    system.close()
