"""Starts the planned processes in order, keeps them running, and ends them in order.

One loop looks at every child a few times a second; probes run in threads of their own, because a child that is busy
starting may take seconds to answer. Valkey is up before anything that needs it and goes last, after the workers have
given their jobs back.
"""

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from clients.local.errors import LaunchError
from clients.local.guardian import Guardian
from clients.local.home import Home, Run, RunningService
from clients.local.models import Pair
from clients.local.plan import Plan
from clients.local.service import EXIT_BAD_SETTINGS, Service, State, describe_exit

TICK_S = 0.1
PROBE_EVERY_S = 0.5
MAX_FAILED_STARTS = 3  # a service that never became ready is given up after these
VALKEY_READY_S = 120.0  # reading a large append-only file takes a while
_LOG_LINES_SHOWN = 15

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the display: one part of the system as it is now."""

    name: str
    state: str
    detail: str


Show = Callable[[Sequence[Row]], None]


class Launcher:
    """A local system. `say` gets what happened, `show` the present state of every part."""

    def __init__(self, home: Home, plan: Plan, pair: Pair, *, say: Say, show: Show) -> None:
        self._home = home
        self._plan = plan
        self._pair = pair
        self._say = say
        self._show = show
        self._guardian = Guardian(home.lock_fd)
        self._services = [Service(spec, home.fresh_log(spec.name), self._guardian) for spec in plan.services]
        self._started_at = time.time()
        self._probing = threading.Event()

    @property
    def url(self) -> str:
        """The gateway's URL."""
        return self._plan.url

    @property
    def is_ready(self) -> bool:
        """Whether every part is ready."""
        return all(service.state is State.READY for service in self._services)

    def start(self, stop: threading.Event) -> None:
        """Make the models if needed, then start everything; return when all of it runs, or `stop` is set.

        Raises:
            LaunchError: the models cannot be made, or Valkey does not start.
        """
        if self._pair.build_into is not None:
            self._build_models(self._pair.build_into, stop)
        first = [service for service in self._services if service.spec is self._plan.valkey]
        rest = [service for service in self._services if service not in first]
        self._run_probes(first)
        self._start(first)
        end = time.monotonic() + VALKEY_READY_S
        while not stop.is_set() and any(service.state is not State.READY for service in first):
            if time.monotonic() > end:
                raise LaunchError("Valkey did not become ready", f"Its log is {first[0].log}.")
            self.tick()
            stop.wait(TICK_S)
        if not stop.is_set():
            self._run_probes(rest)
            self._start(rest)

    def watch(self, stop: threading.Event, *, until_ready: bool = False) -> None:
        """Keep everything running until `stop` is set or, if that is asked for, everything is ready.

        Raises:
            LaunchError: a service never becomes ready and dies again and again.
        """
        while not stop.is_set() and not (until_ready and self.is_ready):
            self.tick()
            stop.wait(TICK_S)

    def tick(self) -> None:
        """Notice what died and start again what is due."""
        for service in self._services:
            had = service.pid
            status = service.poll()
            if status is not None and service.state is State.RESTARTING:
                self._mourn(service, status)
            elif service.pid != had and service.pid is not None:
                self._say(f"{service.spec.name} is starting again (process {service.pid})")
                self._write_run()
        self._show([Row(each.spec.name, each.state.value, each.detail) for each in self._services])

    def stop(self, hurry: threading.Event) -> None:
        """End the gateway, then the workers, then Valkey; `hurry` kills what has not ended by itself."""
        by_spec = {id(service.spec): service for service in self._services}
        order: list[list[Service]] = [
            [by_spec[id(self._plan.gateway)]],
            [by_spec[id(spec)] for spec in self._plan.workers],
            [by_spec[id(self._plan.valkey)]] if self._plan.valkey else [],
        ]
        for group in order:
            self._stop(group, hurry)
        self._probing.set()
        self._guardian.close()

    def _stop(self, group: list[Service], hurry: threading.Event) -> None:
        for service in group:
            service.ask_to_stop()
        end = time.monotonic() + max((service.spec.stop_s for service in group), default=0.0)
        while any(service.state is State.STOPPING for service in group):
            self.tick()
            if hurry.wait(TICK_S) or time.monotonic() > end:
                break
        for service in group:
            if service.state is not State.STOPPED:
                self._say(f"{service.spec.name} did not end by itself: killing it")
                service.kill()
        self.tick()

    def _start(self, services: Sequence[Service]) -> None:
        for service in services:
            service.start()
        self._write_run()

    def _mourn(self, service: Service, status: int) -> None:
        gave_up = status == EXIT_BAD_SETTINGS or service.failures >= MAX_FAILED_STARTS
        if gave_up and not service.was_ready:
            raise LaunchError(
                f"{service.spec.name} ended with {describe_exit(status)}:\n{tail(service.log)}",
                f"Its log is {service.log}.",
            )
        self._say(f"{service.spec.name} ended with {describe_exit(status)}; its log is {service.log}")

    def _run_probes(self, services: Sequence[Service]) -> None:
        for service in services:
            threading.Thread(target=self._probe, args=(service,), daemon=True).start()

    def _probe(self, service: Service) -> None:
        while not self._probing.wait(PROBE_EVERY_S):
            pid = service.pid
            if pid is not None:
                service.learn(pid, service.spec.probe())

    def _write_run(self) -> None:
        self._home.write_run(
            Run(
                url=self._plan.url,
                redis_url=self._plan.redis_url,
                launcher_pid=os.getpid(),
                started_at=self._started_at,
                models=self._pair.title,
                services={
                    service.spec.name: RunningService(
                        pid=service.pid, log=service.log, status_url=service.spec.status_url
                    )
                    for service in self._services
                    if service.pid is not None
                },
            )
        )

    def _build_models(self, target: Path, stop: threading.Event) -> None:
        log = self._home.fresh_log("models")
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "training.minis", str(target)],
                env=dict(self._plan.gateway.environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._guardian.watch(process.pid)
        while process.poll() is None and not stop.wait(TICK_S):
            self._show([Row("models", "building", tail(log, lines=1))])
        if process.returncode is None:
            process.kill()
            process.wait()
        self._guardian.forget(process.pid)
        if process.returncode != 0 and not stop.is_set():
            raise LaunchError(f"the models could not be made:\n{tail(log)}", f"The log is {log}.")
        self._show([Row("models", "ready", str(target))])


def tail(log: Path, *, lines: int = _LOG_LINES_SHOWN) -> str:
    """Return the last lines of a log."""
    with contextlib.suppress(OSError):
        return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:]).strip()
    return ""


@contextlib.contextmanager
def watched(launcher: Launcher) -> Iterator[None]:
    """Keep a started system running from a thread while the caller does something with it."""
    stop = threading.Event()
    thread = threading.Thread(target=launcher.watch, args=(stop,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
