import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from clients.local.guardian import Guardian
from clients.local.probes import Health
from clients.local.service import Service, Spec, State
from tests.processes import LIMIT_S, is_running, until

Start = Callable[[str], Service]


@pytest.fixture
def guardian(tmp_path: Path) -> Iterator[Guardian]:
    lock = os.open(tmp_path / "lock", os.O_CREAT | os.O_RDWR)
    guardian = Guardian(lock)
    yield guardian
    guardian.close()
    os.close(lock)


@pytest.fixture
def start(guardian: Guardian, tmp_path: Path) -> Iterator[Start]:
    services: list[Service] = []

    def start(code: str) -> Service:
        spec = Spec("child", [sys.executable, "-c", code], os.environ, lambda: Health(True, "ready"), stop_s=LIMIT_S)
        services.append(Service(spec, tmp_path / "child.log", guardian))
        services[-1].start()
        return services[-1]

    yield start
    for service in services:
        service.kill()


def poll_until(service: Service, condition: Callable[[], bool]) -> None:
    def polled() -> bool:
        service.poll()
        return condition()

    until(polled)


def test_a_killed_child_is_started_again(start: Start) -> None:
    service = start("import time; time.sleep(1000)")
    first = service.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    poll_until(service, lambda: service.state is State.RESTARTING)
    assert service.detail == "ended with SIGKILL"
    poll_until(service, lambda: service.pid not in (None, first))
    assert service.state is State.STARTING


def test_what_a_dead_child_left_in_its_group_is_killed_before_the_next_start(start: Start) -> None:
    service = start(
        "import subprocess, time\n"
        "child = subprocess.Popen(['sleep', '1000'])\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(1000)\n"
    )
    poll_until(service, lambda: bool(service.log.read_text().strip()))
    grandchild = int(service.log.read_text())
    assert service.pid is not None
    os.kill(service.pid, signal.SIGKILL)
    poll_until(service, lambda: service.state is State.RESTARTING)
    poll_until(service, lambda: not is_running(grandchild))


def test_pauses_between_restarts_grow(start: Start) -> None:
    service = start("raise SystemExit(1)")
    poll_until(service, lambda: service.failures == 1)
    first_pause = service._restart_at - time.monotonic()
    poll_until(service, lambda: service.failures == 3)
    assert service._restart_at - time.monotonic() > first_pause


def test_asked_to_stop_a_child_is_not_started_again(start: Start) -> None:
    service = start("import time; time.sleep(1000)")
    service.ask_to_stop()
    poll_until(service, lambda: service.state is State.STOPPED)
    service.poll()
    assert service.pid is None


def test_health_of_an_earlier_process_is_ignored(start: Start) -> None:
    service = start("import time; time.sleep(1000)")
    assert service.pid is not None
    service.learn(service.pid + 1, Health(True, "ready"))
    assert service.state == "starting"
    service.learn(service.pid, Health(True, "ready"))
    assert service.state == "ready"


def test_a_child_that_ignores_sigterm_can_be_killed(start: Start) -> None:
    service = start(
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep(1000)"
    )
    poll_until(service, lambda: bool(service.log.read_text().strip()))
    service.ask_to_stop()
    service.poll()
    assert service.state == "stopping"
    service.kill()
    assert service.state == "stopped"
