"""Real stages as processes that are killed with no warning in the middle, and then started again as they were."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from tests.training.recipes import ROOT, write_mini
from tests.training.restoration.recipes import recipe
from training import stage1
from training.restoration.__main__ import main as restoration
from training.runs.checkpoints import latest

STEPS = 40
LOGGED = 13  # lines of the log after which the process is killed
PLAN = {
    "steps": STEPS,
    "global_batch": 2,
    "micro_batch": 1,
    "learning_rate": 1e-3,
    "checkpoint_every": 5,
    "log_every": 1,
    "ema_decay": 0.9,
}


def write_language_model(folder: Path) -> Path:
    return write_mini(folder, plan=PLAN)


def write_teacher(folder: Path) -> Path:
    made = recipe(folder / "run", "s1", picture_px=32, crop_px=32, plan=PLAN)
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(made.model_dump(mode="json", exclude_defaults=True)), encoding="utf-8")
    return path


STAGES = {
    "training.stage1": (write_language_model, stage1.main),
    "training.restoration": (write_teacher, restoration),
}


def lines_of(run: Path) -> list[str]:
    path = run / "losses.jsonl"
    return path.read_text(encoding="utf-8").splitlines() if path.is_file() else []


def curve_of(run: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in lines_of(run)]
    for line in lines:
        del line["examples_per_s"]
    return lines


def start(module: str, *arguments: str) -> subprocess.Popen[bytes]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, "-m", module, *arguments], env=environment, cwd=ROOT)


@pytest.mark.parametrize("module", ["training.restoration", pytest.param("training.stage1", marks=pytest.mark.deep)])
def test_stage_that_was_killed_and_started_again_has_the_curve_and_weights_of_one_that_was_not(
    module: str, tmp_path: Path
) -> None:
    write, main = STAGES[module]
    arguments = ["--recipe", str(write(tmp_path)), "--out"]
    killed, whole = tmp_path / "killed", tmp_path / "whole"

    process = start(module, *arguments, str(killed))
    until_s = time.monotonic() + 120
    while len(lines_of(killed)) < LOGGED and process.poll() is None and time.monotonic() < until_s:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it was over before"
    assert LOGGED <= len(lines_of(killed)) < STEPS
    checkpoint = latest(killed)
    assert checkpoint is not None, "it goes on from here"

    assert start(module, *arguments, str(killed)).wait(timeout=120) == 0
    assert main([*arguments, str(whole)]) == 0
    assert len(curve_of(whole)) == STEPS
    assert curve_of(killed) == curve_of(whole)
    for name in ("model", "optimizer", "ema"):
        file = f"checkpoints/step-{STEPS:08d}/{name}.safetensors"
        weights, again = load_file(whole / file), load_file(killed / file)
        assert weights.keys() == again.keys()
        assert all(torch.equal(tensor, again[key]) for key, tensor in weights.items())
