"""The real service as a process: started, waited for, asked, ended."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

from services.mllm.ending import descendants
from shared.artifacts import FolderStore
from tests.ports import free_port

START_S = 300.0  # half a minute on a quiet machine
END_S = 90.0


class RunningService:
    """One `python -m services.mllm`; its log is in `log`."""

    def __init__(self, folder: Path, model: Path, redis_url: str, namespace: str, **settings: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.port, self.status_port = free_port(), free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.status_url = f"http://127.0.0.1:{self.status_port}"
        self.namespace = namespace
        self.log = folder / "mllm.log"
        self.artifacts = FolderStore(folder / "home" / "artifacts", retention_s=86_400)
        environment = {name: value for name, value in os.environ.items() if not name.startswith("LLMGA_")} | {
            "LLMGA_HOME": str(folder / "home"),
            "LLMGA_LOG__FORMAT": "text",
            "LLMGA_MLLM__METRICS_PORT": str(self.status_port),
            "LLMGA_MLLM__MODEL": str(model),
            "LLMGA_MLLM__NAME": "mini",
            "LLMGA_MLLM__PORT": str(self.port),
            "LLMGA_REDIS__NAMESPACE": namespace,
            "LLMGA_REDIS__URL": redis_url,
            **settings,
        }
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "services.mllm"], env=environment, stdout=log, stderr=log
            )

    def wait_ready(self) -> "RunningService":
        """Return when `/readyz` says so; fail with the log when the process ends or takes too long."""
        end = time.monotonic() + START_S
        while time.monotonic() < end and self.process.poll() is None:
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{self.status_url}/readyz", timeout=5).status_code == 200:
                    return self
            time.sleep(0.2)
        raise AssertionError(f"the service did not get ready:\n{self.log.read_text()[-8_000:]}")

    def wait_ended(self) -> int:
        """Return the exit status when the process has ended."""
        return self.process.wait(END_S)

    def terminate(self) -> None:
        """Ask the process to end."""
        self.process.send_signal(signal.SIGTERM)

    def workers(self) -> list[int]:
        """Return vLLM's processes; without the one that ends by itself after it has removed the shared memory."""
        return [
            pid
            for pid in descendants(self.process.pid)
            if b"resource_tracker" not in Path(f"/proc/{pid}/cmdline").read_bytes()
        ]

    def kill_descendants(self) -> None:
        """End the processes that vLLM started, at once."""
        for pid in self.workers():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def gauge(self, name: str, **labels: str) -> float:
        """Return the sum of a metric of vLLM's over the given labels."""
        total = 0.0
        for line in httpx.get(f"{self.url}/metrics", timeout=30).text.splitlines():
            if line.startswith(f"vllm:{name}{{") and all(f'{key}="{value}"' in line for key, value in labels.items()):
                total += float(line.rpartition(" ")[2])
        return total

    def write(self, **body: Any) -> httpx.Response:
        """Call the direct endpoint."""
        return httpx.post(f"{self.url}/v1/generation-prompts", json=body, timeout=120)

    def kill(self) -> None:
        """End everything at once."""
        if self.process.poll() is None:
            self.kill_descendants()
            self.process.kill()
        self.process.wait()


@contextlib.contextmanager
def running(folder: Path, model: Path, redis_url: str, namespace: str, **settings: str) -> Iterator[RunningService]:
    """Start the service; it is gone when the block ends."""
    service = RunningService(folder, model, redis_url, namespace, **settings)
    try:
        yield service
    finally:
        service.kill()
