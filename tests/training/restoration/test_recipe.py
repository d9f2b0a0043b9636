"""Recipes of the restoration network: the published numbers, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from services.diffusion.restoration.config import RestorationConfig, Scale
from tests.training.restoration.recipes import PLAN, SMALL, recipe
from training.recipes import load_recipe
from training.recipes.recipe import FOLDER
from training.restoration.__main__ import main
from training.restoration.recipe import RestorationRecipe

RECIPES = sorted(path for path in FOLDER.glob("*restoration-*.yaml"))


def shipped(name: str) -> RestorationRecipe:
    return load_recipe(FOLDER / f"{name}.yaml", RestorationRecipe)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_dry_run_takes_two_steps_resumes_and_exports(path: Path) -> None:
    assert main(["--recipe", str(path), "--dry-run"]) == 0


def test_all_scales_and_steps_have_a_recipe() -> None:
    wanted = {f"restoration-x{scale}-{step}" for scale in (1, 2, 4) for step in ("s1", "s2", "gan")}
    assert {path.stem for path in RECIPES} == wanted | {"tiny-restoration-s1", "tiny-restoration-s2"}


@pytest.mark.parametrize("scale", [1, 2, 4])
def test_published_numbers(scale: Scale) -> None:
    s1, s2, gan = (shipped(f"restoration-x{scale}-{step}") for step in ("s1", "s2", "gan"))
    for each in (s1, s2, gan):
        assert each.network == RestorationConfig(scale=scale)
        assert (each.picture_px, each.crop_px, each.mask_scale) == (400, 256, 1.0)
        assert (each.plan.global_batch, each.plan.micro_batch) == (64, 8)
        assert (each.plan.betas, each.plan.weight_decay, each.plan.max_grad_norm) == ((0.9, 0.99), 0, None)
    contrasts = [each.degradation.contrast for each in (s1, s2, gan) if each.degradation.kind == "real-esrgan"]
    assert contrasts == [0.06, 0.08, 0.06 if scale == 1 else 0.08]
    # Learning rates around the published milestones, steps counted from 0.
    teacher = s1.plan.plan(1)
    first, second, last = (200_000, 300_000, 400_000) if scale == 1 else (500_000, 700_000, 1_000_000)
    assert teacher.steps == last
    assert [teacher.learning_rate_at(step) for step in (0, first - 1, first, second)] == pytest.approx(
        [2e-4, 2e-4, 1e-4, 5e-5]
    )
    assert s2.encoder_plan is not None
    encoder, joint = s2.encoder_plan.plan(1), s2.plan.plan(1)
    assert encoder.steps + joint.steps == 1_000_000
    assert encoder.steps == 100_000
    assert [encoder.learning_rate_at(step) for step in (59_999, 60_000)] == pytest.approx([2e-4, 2e-5])
    assert [joint.learning_rate_at(step) for step in (599_999, 600_000)] == pytest.approx([2e-4, 1e-4])
    sharp = gan.plan.plan(1)
    assert sharp.steps == 400_000
    assert [sharp.learning_rate_at(step) for step in (299_999, 300_000)] == pytest.approx([1e-4, 5e-5])
    assert (s1.plan.ema_decay, s2.plan.ema_decay, gan.plan.ema_decay) == (None, 0.999, 0.999)
    assert (gan.critic_channels, gan.sharpened) == (64, False)


def test_tiny_network_is_small_and_at_scale_one() -> None:
    for step in ("s1", "s2"):
        tiny = shipped(f"tiny-restoration-{step}")
        assert tiny.pictures is None
        assert tiny.network.scale == 1
        assert tiny.picture_px == 128
    assert shipped("tiny-restoration-s1").network == shipped("tiny-restoration-s2").network


@pytest.mark.parametrize(
    ("step", "changes", "message"),
    [
        ("s2", {"encoder_plan": PLAN}, "teacher is needed by the step s2"),
        ("s2", {"teacher": "t"}, "encoder_plan is needed by the step s2"),
        ("gan", {"teacher": "t", "start": "s"}, "perceptual is needed by the step gan"),
        ("s1", {"teacher": "t"}, "teacher is not taken by the step s1"),
        ("s1", {"sharpened": True}, "sharpened is not taken by the step s1"),
        ("s1", {"crop_px": 48}, "crop_px must be a multiple of 32"),
        ("s1", {"crop_px": 96}, "crop_px must not be above picture_px"),
        ("s1", {"network": SMALL | {"scale": 4}, "picture_px": 66, "crop_px": 32}, "picture_px of 4"),
        ("s1", {"degradation": {"kind": "rain"}}, "degradation"),
    ],
)
def test_contradictions_are_refused(tmp_path: Path, step: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        recipe(tmp_path, step, **changes)
