"""`llmga up` and `llmga demo`: a whole system in this terminal.

The first Ctrl-C (or SIGTERM) lets everything drain; a second one ends it at once.
"""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from clients.client import Client
from clients.errors import ClientError
from clients.generate import Outcome, generate
from clients.local.display import Display, open_display
from clients.local.errors import LaunchError
from clients.local.home import Home, read_run
from clients.local.launcher import Launcher, watched
from clients.local.models import SHIPPED, choose_pair
from clients.local.plan import make_plan, own_settings
from clients.view import View
from shared.contracts import GenerationRequest

DEMO_INSTRUCTION = "draw a snowman at night"
DEMO_SEED = 7
OPEN_S = 30.0  # for the gateway to see all the workers that call themselves ready


class Interruption:
    """The wish to stop: `stop` after the first signal, `hurry` after the second."""

    def __init__(self) -> None:
        self.stop = threading.Event()
        self.hurry = threading.Event()
        self._is_raising = False

    @contextmanager
    def handled(self) -> Iterator["Interruption"]:
        """Take the signals while the block runs."""
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        before = {number: signal.signal(number, self._on_signal) for number in numbers}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def raising(self) -> Iterator[None]:
        """Raise KeyboardInterrupt at the first signal while the block runs, for code that waits without us."""
        if self.stop.is_set():
            raise KeyboardInterrupt
        self._is_raising = True
        try:
            yield
        finally:
            self._is_raising = False

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.stop.is_set():
            self.hurry.set()
        self.stop.set()
        if self._is_raising:
            self._is_raising = False
            raise KeyboardInterrupt


@contextmanager
def system(
    path: Path,
    display: Display,
    interruption: Interruption,
    *,
    port: int | None,
    workers: int,
    models: Path = SHIPPED,
) -> Iterator[Launcher]:
    """Start a system in a home folder, and end all of it with the block. `models`: folder of its pair.

    Raises:
        LaunchError: it cannot be started.
    """
    with Home.open(path) as home:
        pair = choose_pair(home.path, own_settings(os.environ), shipped=models)
        plan = make_plan(home.path, pair, port=port, workers=workers, environ=os.environ)
        launcher = Launcher(home, plan, pair, say=display.say, show=display.show)
        display.say(f"home {home.path}, logs in {home.logs}")
        display.say(f"models: {pair.title}")
        if plan.asks_for_keys:
            display.say("requests need an API key: `llmga keys create NAME` makes one, LLMGA_API_KEY sends it")
        else:
            display.say("authentication is OFF: whoever reaches the gateway's address may use it")
        try:
            launcher.start(interruption.stop)
            launcher.watch(interruption.stop, until_ready=True)
            wait_until_open(launcher, interruption.stop)
            yield launcher
        finally:
            launcher.stop(interruption.hurry)


def wait_until_open(launcher: Launcher, stop: threading.Event) -> None:
    """Wait until the gateway itself says that the system can serve.

    Raises:
        LaunchError: it keeps saying that something is missing.
    """
    end = time.monotonic() + OPEN_S
    with Client(launcher.url) as client:
        while not stop.is_set():
            launcher.tick()
            try:
                is_ready, details = client.readiness()
            except ClientError:
                is_ready, details = False, {}
            if is_ready:
                return
            if time.monotonic() > end:
                raise LaunchError(f"the gateway is not ready: {details}", f"Look at {launcher.url}/readyz?verbose.")
            stop.wait(0.2)


def up(path: Path, *, port: int | None, workers: int, models: Path = SHIPPED) -> None:
    """Keep a system running until it is told to stop.

    Raises:
        LaunchError: it cannot be started, or was interrupted before it was ready.
    """
    interruption = Interruption()
    with interruption.handled(), open_display() as display:
        with system(path, display, interruption, port=port, workers=workers, models=models) as launcher:
            if not interruption.stop.is_set():
                display.settle()
                display.say(f"ready: {launcher.url} (Ctrl-C stops everything)")
                display.say(f'try: llmga generate "{DEMO_INSTRUCTION}"')
                launcher.watch(interruption.stop)
            display.say("stopping")
        display.say("stopped")


def demo(path: Path, view: View, *, out: Path, port: int | None) -> Outcome:
    """Make one picture, in the system that runs in the home folder or else in one started for it.

    Raises:
        LaunchError: no system can be started.
        ClientError: the request is refused or the system went away.
        KeyboardInterrupt: it was interrupted.
    """
    request = GenerationRequest(instruction=DEMO_INSTRUCTION, seed=DEMO_SEED)
    running = read_run(path.absolute())
    if running is not None:
        with Client(running.url) as client:
            return _make(client, request, view, out)
    interruption = Interruption()
    with (
        interruption.handled(),
        open_display() as display,
        system(path, display, interruption, port=port, workers=1) as launcher,
        interruption.raising(),
    ):
        display.settle()
        display.say(f"ready: {launcher.url}")
        display.say(f"request: {DEMO_INSTRUCTION}")
        with watched(launcher), Client(launcher.url) as client:
            return _make(client, request, view, out)


def _make(client: Client, request: GenerationRequest, view: View, out: Path) -> Outcome:
    outcome = generate(client, request, view, output=out / "demo.png")
    out.mkdir(parents=True, exist_ok=True)
    (out / "demo.json").write_text(outcome.job.model_dump_json(indent=2, exclude_none=True) + "\n", encoding="utf-8")
    return outcome
