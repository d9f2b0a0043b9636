"""Whole steps: they learn, follow on each other, and end in folders that are served."""

import json
import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from services.diffusion.checkpoints import UnfitCheckpoint
from services.diffusion.restoration.checkpoints import load
from services.diffusion.restoration.restorer import Painting, Restorer
from tests.training.restoration.recipes import PLAN, SMALL, recipe
from training.data.formats import DataError
from training.restoration.__main__ import main
from training.restoration.adversary import WEIGHTS, Perceptual
from training.restoration.steps import load_teacher, train


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(recipe(tmp_path_factory.mktemp("s1"), "s1"))


@pytest.fixture(scope="module")
def student(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("s2")
    plan = PLAN | {"ema_decay": 0.5}
    return train(recipe(out, "s2", teacher=teacher, encoder_plan=PLAN, plan=plan, export_dtype="float16"))


def test_teacher_learns_and_is_exported(tmp_path: Path) -> None:
    plan = PLAN | {"steps": 60, "learning_rate": 5e-3, "global_batch": 4, "micro_batch": 4, "checkpoint_every": 100}
    export = train(recipe(tmp_path, "s1", plan=plan, picture_px=32, crop_px=32))
    losses = [json.loads(line)["loss"] for line in (tmp_path / "losses.jsonl").read_text().splitlines()]
    assert np.mean(losses[-10:]) < 0.8 * np.mean(losses[:10])
    assert load_teacher(export).config.dim == SMALL["dim"]


def test_bad_pictures_stop_a_run_or_are_left_out_and_counted_at_its_end(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "pictures").mkdir()
    for number in range(2):
        Image.new("RGB", (64, 64), (90 * number,) * 3).save(tmp_path / "pictures" / f"{number}.png")
    (tmp_path / "pictures" / "1.png").write_bytes(b"no picture")
    given = {"pictures": tmp_path / "pictures", "picture_px": 32, "crop_px": 32}
    with pytest.raises(DataError, match=r"1\.png: "):
        train(recipe(tmp_path / "stopped", "s1", **given))
    with caplog.at_level(logging.INFO, logger="llmga.training"):
        train(recipe(tmp_path / "run", "s1", **given, on_error="skip"))
    assert caplog.messages[-1] == "pictures: 3 skipped"  # in three steps of two


def test_student_starts_from_the_teacher_and_its_encoder_phase_leaves_the_rest(teacher: Path, tmp_path: Path) -> None:
    plan = PLAN | {"learning_rate": 1e-12}
    export = train(recipe(tmp_path, "s2", teacher=teacher, encoder_plan=PLAN | {"learning_rate": 1e-2}, plan=plan))
    body, wanted = load(export).G.state_dict(), load_teacher(teacher).G.state_dict()
    for name, tensor in wanted.items():
        torch.testing.assert_close(body[name], tensor, rtol=0, atol=1e-6)
    phases = [(tmp_path / phase / "losses.jsonl").read_text().splitlines() for phase in ("encoder", "joint")]
    assert [len(lines) for lines in phases] == [3, 3]
    assert json.loads(phases[0][-1])["loss"] != json.loads(phases[0][0])["loss"]


def test_export_is_served_and_carries_its_origin(student: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    mask = np.zeros((50, 70), dtype=np.uint8)
    mask[10:30, 20:40] = 255
    (out,) = Restorer.load(student).restore_batch([Painting(pixels, mask, pixels, 0)])
    assert np.array_equal(out[mask == 0], pixels[mask == 0])
    meta = json.loads((student / "meta.json").read_text(encoding="utf-8"))
    assert meta["tags"]["recipe"]["step"] == "s2"
    assert meta["step"] == 3


def test_critic_step_goes_on_from_the_student(teacher: Path, student: Path, tmp_path: Path) -> None:
    save_file(Perceptual(narrower=16).state_dict(), tmp_path / WEIGHTS)
    given = {"teacher": teacher, "start": student, "perceptual": tmp_path, "critic_channels": 4, "sharpened": True}
    export = train(recipe(tmp_path / "out", "gan", **given))
    before, after = load(student).state_dict(), load(export).state_dict()
    assert any(not torch.equal(tensor, after[name]) for name, tensor in before.items())
    line = json.loads((tmp_path / "out" / "losses.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    assert line.keys() >= {"pixels", "ipr", "features", "fooled", "critic"}


def test_other_networks_and_missing_teachers_are_refused(teacher: Path, tmp_path: Path) -> None:
    wider = recipe(tmp_path, "s2", teacher=teacher, encoder_plan=PLAN, network=SMALL | {"dim": 16})
    with pytest.raises(UnfitCheckpoint, match="dim differ from the recipe's"):
        train(wider)
    with pytest.raises(UnfitCheckpoint, match="run the recipe of its step s1 first"):
        train(recipe(tmp_path, "s2", teacher=tmp_path / "none", encoder_plan=PLAN))


def test_command_says_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = Path("training/recipes/tiny-restoration-s2.yaml")
    assert main(["--recipe", str(path), "--out", str(tmp_path), "--set", f"teacher={tmp_path}/none"]) == 2
    assert "run the recipe of its step s1 first" in capsys.readouterr().err


def test_help_imports_no_torch() -> None:
    code = (
        "import sys; from training.restoration.__main__ import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "sys.exit('torch' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert result.returncode == 0, result.stderr
    assert "accelerate launch -m training.restoration" in result.stdout
