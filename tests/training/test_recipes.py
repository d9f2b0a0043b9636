from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.training.recipes import recipes_of
from training.bases.clip import ClipRecipe
from training.bases.tower import TowerRecipe
from training.llava import PROJECTOR_FILE
from training.plan import Plan
from training.recipes import PlanSettings, Recipe, RecipeError, load_recipe
from training.recipes.mllm import MLLMRecipe
from training.recipes.recipe import FOLDER, stage_of

# Stages and the tests that take the dry run of each of their recipes.
DRY_RUNS = {
    "pretrain": "test_stages",
    "stage1": "test_stages",
    "stage2": "test_stage2",
    "restoration": "restoration.test_recipe",
    "language": "bases.test_language",
    "clip": "bases.test_alignment",
    "tower": "bases.test_tower",
    "vae": "bases.test_reconstruction",
}
MINIMAL: dict[str, Any] = {
    "stage": "x",
    "about": "A run",
    "out": "runs/x",
    "plan": {"steps": 10, "global_batch": 8, "micro_batch": 2, "learning_rate": 0.1},
}


def write(folder: Path, content: object) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content), encoding="utf-8")
    return path


def test_every_recipe_has_its_dry_run_among_the_tests() -> None:
    found = {path.stem: stage_of(path) for path in FOLDER.glob("*.yaml")}
    assert set(found.values()) == set(DRY_RUNS)
    assert sorted(found) == recipes_of(*DRY_RUNS)
    for stage, module in DRY_RUNS.items():
        tests = import_module(f"tests.training.{module}")
        taken: set[str] = set()
        for name, test in vars(tests).items():
            if name.startswith("test_") and "dry_run" in name:
                marks = [mark for mark in getattr(test, "pytestmark", []) if mark.name == "parametrize"]
                taken |= {value.stem if isinstance(value, Path) else value for mark in marks for value in mark.args[1]}
        assert taken == {name for name, its_stage in found.items() if DRY_RUNS[its_stage] == module}, stage


def test_second_run_of_the_tiny_pair_reads_what_its_tower_and_projector_leave() -> None:
    tower = load_recipe(FOLDER / "tiny-tower.yaml", TowerRecipe)
    projector = load_recipe(FOLDER / "tiny-pretrain-sight.yaml", MLLMRecipe)
    sight = load_recipe(FOLDER / "tiny-sight.yaml", MLLMRecipe)
    first = load_recipe(FOLDER / "tiny-stage1.yaml", MLLMRecipe)
    clip = load_recipe(FOLDER / "tiny-clip.yaml", ClipRecipe)
    assert tower.base == clip.out / "vision_tower"
    assert projector.tower == sight.tower == tower.out / "vision_tower"
    assert projector.base == sight.base == first.out / "checkpoint"
    assert sight.projector == projector.out / PROJECTOR_FILE
    assert (projector.family, sight.family) == (first.family, first.family)
    assert projector.shaping == sight.shaping == first.shaping == "squared"


def test_runs_of_the_tiny_pair_go_on_where_the_one_before_ended() -> None:
    runs = [load_recipe(FOLDER / f"tiny-{name}.yaml", MLLMRecipe) for name in ("sight", "lists", "sessions", "again")]
    for before, after in pairwise(runs):
        assert after.base == before.out / "checkpoint"
        assert after.projector == after.base / "model.safetensors"
        assert (after.family, after.tower, after.shaping, after.side) == (
            before.family, before.tower, before.shaping, before.side,
        )  # fmt: skip


def test_published_numbers_are_those_of_the_sheet() -> None:
    for name in recipes_of("pretrain"):
        if not name.startswith("tiny"):
            plan = load_recipe(FOLDER / f"{name}.yaml", MLLMRecipe).plan
            assert (plan.global_batch, plan.learning_rate, plan.epochs, plan.schedule) == (256, 1e-3, 1, "cosine")
            assert plan.plan(558_128).accumulation(processes=8) == 4
    micro = {
        "vicuna": 4,
        "mistral": 4,
        "llama3": 2,
        "qwen2-0.5b": 4,
        "qwen2-1.5b": 4,
        "qwen2-7b": 2,
        "phi3": 4,
        "gemma": 2,
    }
    for name in recipes_of("stage1"):
        recipe = load_recipe(FOLDER / f"{name}.yaml", MLLMRecipe)
        if name.startswith("tiny") or recipe.adapter:
            continue
        plan = recipe.plan
        assert (plan.global_batch, plan.learning_rate, plan.epochs, plan.schedule) == (128, 2e-5, 1, "cosine")
        assert (plan.weight_decay, plan.warmup_ratio, plan.precision) == (0, 0.03, "bf16")
        assert plan.micro_batch == next(size for model, size in micro.items() if model in name)
        assert plan.plan(1_000_000).accumulation(processes=8) == 16 // plan.micro_batch
        assert recipe.shaping == "stage1"
        assert not any("alpaca" in str(source.json_file) for source in recipe.data)


def test_length_and_warm_up_follow_from_the_data() -> None:
    settings = PlanSettings(epochs=1, global_batch=128, micro_batch=4, learning_rate=1e-5, warmup_ratio=0.03)
    plan = settings.plan(examples=10_000)
    assert (plan.steps, plan.warmup_steps) == (79, 3)
    assert PlanSettings(steps=5, global_batch=1, micro_batch=1, learning_rate=1).plan(9) == Plan(5, 1, 1, 1)


def test_changes_come_on_top_of_the_file(tmp_path: Path) -> None:
    changes = ["plan.learning_rate=1e-5", "plan.betas=[0.9, 0.95]", "out=elsewhere"]
    recipe = load_recipe(write(tmp_path, MINIMAL), Recipe, changes)
    assert recipe.plan.betas == (0.9, 0.95)
    assert recipe.plan.learning_rate == 1e-5
    assert recipe.out == Path("elsewhere")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("a: [", "it is no YAML"),
        ("- a", "a recipe is a mapping"),
        ({**MINIMAL, "speed": 3}, "speed: Extra inputs are not permitted"),
        ({**MINIMAL, "plan": {**MINIMAL["plan"], "steps": None}}, "plan: .*give either steps or epochs"),
        ({**MINIMAL, "plan": {**MINIMAL["plan"], "epochs": 2}}, "plan: .*give either steps or epochs"),
        ({**MINIMAL, "plan": {**MINIMAL["plan"], "ema_decay": 1.5}}, "plan: ema_decay must be between 0 and 1"),
        ({**MINIMAL, "plan": {**MINIMAL["plan"], "micro_batch": "two"}}, "plan.micro_batch: "),
        ({"stage": "x"}, "about: Field required"),
    ],
)
def test_wrong_recipe_is_refused_with_file_and_key(tmp_path: Path, content: object, problem: str) -> None:
    path = write(tmp_path, content)
    with pytest.raises(RecipeError, match=problem) as caught:
        load_recipe(path, Recipe)
    assert str(caught.value).startswith(f"{path}: ")


def test_missing_recipe_is_refused_with_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"stage1-qwen2-0\.5b"):
        load_recipe(tmp_path / "recipe.yaml", Recipe)


@pytest.mark.parametrize("change", ["plan", "about.x=1"])
def test_change_that_is_none_is_refused(tmp_path: Path, change: str) -> None:
    with pytest.raises(RecipeError, match=f"--set {change.partition('=')[0]}: "):
        load_recipe(write(tmp_path, MINIMAL), Recipe, [change])


def test_pretraining_with_an_adapter_is_refused(tmp_path: Path) -> None:
    content = yaml.safe_load((FOLDER / "pretrain-qwen2-0.5b.yaml").read_text())
    with pytest.raises(RecipeError, match="no projector, no adapter"):
        load_recipe(write(tmp_path, {**content, "adapter": {"rank": 4, "alpha": 8}}), MLLMRecipe)
