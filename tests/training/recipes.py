"""The recipes in the repository, by stage, and mini runs of the language model's stages."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file

from training.minis.bases import build_base, build_tower
from training.minis.data import write_data
from training.recipes.recipe import FOLDER, stage_of

ROOT = Path(__file__).parents[2]
KINDS = ("text_to_image", "similar_image", "inpainting", "edit", "dialogue")


def recipes_of(*stages: str) -> list[str]:
    """Return the names of all recipes of these stages."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml") if stage_of(path) in stages)


def write_mini(folder: Path, family: str = "qwen2", **changes: Any) -> Path:
    """Write mini checkpoints, data and a stage 1 recipe for them; return the recipe's file."""
    build_base(folder / "base", family)
    build_tower(folder / "clip-mini")
    write_data(folder / "data")
    recipe = {
        "stage": "stage1",
        "about": "A mini run",
        "family": family,
        "base": str(folder / "base"),
        "tower": str(folder / "clip-mini"),
        "out": str(folder / "run"),
        "data": [
            {"kind": kind, "json": str(folder / "data" / f"{kind}.json"), "images": str(folder / "data")}
            for kind in KINDS
        ],
        "shaping": "stage1",
        "side": 64,
        "plan": {"steps": 3, "global_batch": 4, "micro_batch": 2, "learning_rate": 1e-3, "log_every": 1},
        **changes,
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return path


LAUNCHERS = (
    "--config_file training/accelerate/cpu.yaml",
    pytest.param(
        "--cpu --num_processes 2 --mpirun_hostfile {hosts}",
        marks=pytest.mark.skipif(shutil.which("mpirun") is None, reason="accelerate's --cpu needs mpirun"),
        id="mpirun",
    ),
)


def run_in_two_processes(launcher: str, folder: Path, module: str, *arguments: str) -> None:
    """Run a stage by `accelerate launch`, in one of the ways in which it starts several processes on a CPU."""
    (folder / "hosts").write_text("localhost slots=2\n", encoding="utf-8")
    command = f"-m accelerate.commands.launch {launcher.format(hosts=folder / 'hosts')}"
    launched = subprocess.run(
        [sys.executable, *command.split(), "-m", module, *arguments],
        env=os.environ
        | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        | {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert launched.returncode == 0, launched.stderr


def assert_two_equal_one(one: Path, two: Path, step: int) -> None:
    """Check that two processes learned in the folder `two` what one did in `one`, within rounding."""
    assert json.loads((two / "meta.json").read_text())["processes"] == 2
    curves = [[json.loads(line) for line in (run / "losses.jsonl").read_text().splitlines()] for run in (one, two)]
    first, second = ([line["loss"] for line in curve] for curve in curves)
    assert second == pytest.approx(first, rel=1e-4)
    weights = [load_file(run / "checkpoints" / f"step-{step:08d}" / "model.safetensors") for run in (one, two)]
    # Adam divides by the gradient's size: where that is near nothing, rounding alone may move a weight by one rate.
    differences = [float((weights[1][name] - tensor).abs().mean()) for name, tensor in weights[0].items()]
    assert max(differences) < 1e-5
