"""`llmga up` when things go wrong before it is ready."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from clients.cli import NOT_STARTED, OK
from clients.local.home import Home
from tests.processes import is_running, until

LIMIT_S = 240.0


@contextmanager
def up(folder: Path, **environ: str) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """Run `llmga up` on a free port; yield the process and the file with its output."""
    output = folder / "up.log"
    with output.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "clients.cli", "up", "--port", "0", "--home", "home", "--models", "nowhere"],
            cwd=folder,
            env={**os.environ, **environ},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        yield process, output
    finally:
        process.kill()  # the guardian ends the rest
        process.wait()


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def check_nothing_is_left(folder: Path, pids: list[int]) -> None:
    until(lambda: not any(is_running(pid) for pid in pids), what="the end of all children")
    Home.open(folder / "home").close()


def test_a_setting_that_no_service_knows_ends_the_start_with_its_name(tmp_path: Path) -> None:
    models = {"LLMGA_MLLM__MODEL": "none", "LLMGA_DIFFUSION__MODELS": '{"none": "none"}'}
    with up(tmp_path, LLMGA_MLLM__TEMPERATUR="0.5", **models) as (process, output):
        assert process.wait(LIMIT_S) == NOT_STARTED
        assert "LLMGA_MLLM__TEMPERATUR is not a setting" in output.read_text()
        assert "did you mean LLMGA_MLLM__TEMPERATURE?" in output.read_text()
    check_nothing_is_left(tmp_path, [])


def test_an_interrupted_start_ends_everything_it_had_started(tmp_path: Path) -> None:
    with up(tmp_path) as (process, output):
        until(lambda: "models: building" in output.read_text(), what="the start")
        pids = children(process.pid)
        assert len(pids) == 2, "the guardian and what makes the models"
        process.send_signal(signal.SIGINT)
        assert process.wait(LIMIT_S) == OK, output.read_text()
    check_nothing_is_left(tmp_path, pids)


def test_a_killed_launcher_leaves_its_home_free_and_nothing_running(tmp_path: Path) -> None:
    with up(tmp_path) as (process, output):
        until(lambda: "models: building" in output.read_text(), what="the start")
        pids = children(process.pid)
        process.kill()
        process.wait()
    check_nothing_is_left(tmp_path, pids)
