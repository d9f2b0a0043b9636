"""The command line against the whole system."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.system import MODELS, System

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


def llmga(system: System, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "clients.cli", *arguments],
        cwd=folder,
        env=os.environ | {"LLMGA_HOME": str(system.home)},
        capture_output=True,
        text=True,
        timeout=600,
    )


def test_generate_finds_the_running_system_and_saves_the_pictures(system: System, tmp_path: Path) -> None:
    done = llmga(system, tmp_path, "generate", "a red fox", "--steps", "3", "--n", "2", "--output", "fox.webp")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["fox.webp", "fox-1.webp"]
    for name in ("fox.webp", "fox-1.webp"):
        with Image.open(tmp_path / name) as picture:
            assert picture.format == "WEBP"
    assert "writing the prompt" in done.stderr


def test_models_that_are_served_are_listed(system: System, tmp_path: Path) -> None:
    done = llmga(system, tmp_path, "models")
    assert [line.split()[0] for line in done.stdout.splitlines()] == MODELS


def test_demo_uses_the_running_system_and_leaves_it_running(system: System, tmp_path: Path) -> None:
    done = llmga(system, tmp_path, "demo")
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "out" / "demo.json").read_text())
    assert record["request"]["instruction"] == "draw a snowman at night"
    assert record["prompt"]["source"] == "mllm"
    assert record["timings"]["total_s"] > 0
    with Image.open(tmp_path / "out" / "demo.png") as picture:
        assert picture.format == "PNG"
    assert system.process.poll() is None


def test_a_second_launcher_on_the_same_home_is_refused(system: System, tmp_path: Path) -> None:
    done = llmga(system, tmp_path, "up", "--port", "0")
    assert done.returncode == 5
    assert f"in use by process {system.process.pid}" in done.stderr


def test_a_taken_port_is_refused_with_another_one(system: System, tmp_path: Path) -> None:
    port = system.run.url.rpartition(":")[2]
    done = llmga(system, tmp_path, "up", "--home", "other", "--port", port)
    assert done.returncode == 5
    assert f"port {port} cannot be used" in done.stderr
    assert "--port" in done.stderr
