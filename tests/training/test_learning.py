"""A minute of the chain's own training on the shipped bases, held against the judge: it must learn to obey words."""

from pathlib import Path

import numpy as np
import pytest

from training import stage2
from training.evaluation.judge import read
from training.evaluation.painting import FolderPainter
from training.recipes.recipe import FOLDER
from training.world.captions import caption_of
from training.world.scenes import sample_scene

BASES = Path("models/llmga-tiny/bases").resolve()
SIDE_PX = 64
SCENES = 24


def backgrounds_right(checkpoint: Path) -> float:
    """The share of held-out captions whose background has its color in the picture that is drawn of them."""
    painter = FolderPainter(checkpoint, num_inference_steps=10)
    painter.side_px = SIDE_PX
    scenes = [sample_scene(number, "held_out") for number in range(SCENES)]
    pictures = painter.render([caption_of(scene) for scene in scenes], list(range(SCENES)))
    readings = [read(picture.repeat(2, axis=0).repeat(2, axis=1)) for picture in pictures]
    return float(
        np.mean([seen.background.color == scene.background.color for seen, scene in zip(readings, scenes, strict=True)])
    )


def test_a_unet_learns_within_a_minute_to_paint_the_backgrounds_that_captions_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    changes = {
        "fresh.vae": BASES / "vae",
        "fresh.clip": BASES / "clip",
        "fresh.unet.block_out_channels": [32, 64, 64],
        "size": SIDE_PX,
        "data.scenes": 300,
        "data.captions": "whole",
        "timestep_shift": 2.5,
        "plan.steps": 100,
        "plan.global_batch": 32,
        "plan.micro_batch": 32,
        "plan.learning_rate": 1.5e-3,
        "plan.warmup_steps": 20,
        "plan.ema_decay": 0.97,
    }
    recipe = ["--recipe", str(FOLDER / "tiny-sd15-base.yaml")]
    assert stage2.main([*recipe, "--set", *(f"{name}={value}" for name, value in changes.items())]) == 0
    before = backgrounds_right(Path("runs/sd15-fresh"))
    after = backgrounds_right(Path("runs/sd15-short/checkpoint"))
    assert before <= 0.25
    assert after >= before + 0.3
