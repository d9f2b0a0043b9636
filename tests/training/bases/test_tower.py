"""The second tower of the tiny pair: its patches' places, what it is told, and what it leaves."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPVisionConfig

from services.diffusion.libraries import CLIPVisionModel
from tests.training.recipes import recipes_of
from training.bases.alignment import PATCH_CLASSES, Sighted, sight_loss_of
from training.bases.tower import TowerRecipe, dry_run, export, fit_recipe, open_base, place, train
from training.checkpoints import CheckpointError
from training.minis.bases import build_tower
from training.recipes.recipe import FOLDER, load_recipe
from training.runs import Batch

SMALL = ("plan.steps=3", "plan.global_batch=2", "plan.micro_batch=2", "plan.warmup_steps=0", "plan.log_every=1")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "vision_tower"
    build_tower(folder)
    return folder


def recipe_of(*changes: str, name: str = "tiny-tower") -> TowerRecipe:
    return load_recipe(FOLDER / f"{name}.yaml", TowerRecipe, changes)


def places_of(tower: Any) -> torch.Tensor:
    """Return the position embedding, (patches + 1, hidden)."""
    (name,) = [name for name in tower.state_dict() if name.endswith("position_embedding.weight")]
    weight = tower.state_dict()[name]
    assert isinstance(weight, torch.Tensor)
    return weight


@pytest.mark.parametrize("name", recipes_of("tower"))
def test_the_dry_run_of_each_recipe_leaves_nothing_behind(tmp_path: Path, name: str) -> None:
    dry_run(recipe_of(f"out={tmp_path / 'run'}", name=name))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("side", "width"), [(4, 64), (8, 128)])  # of the mini and of the tiny pair
def test_neighboring_patches_have_nearer_places_than_strangers(side: int, width: int) -> None:
    config = CLIPVisionConfig(
        hidden_size=width, image_size=16 * side, patch_size=16, num_hidden_layers=1, num_attention_heads=1
    )
    tower = CLIPVisionModel(config)
    before = places_of(tower).clone()
    place(tower)
    places = places_of(tower)
    assert torch.equal(places[0], before[0]), "the class token keeps its own"
    distances = torch.cdist(places[1:], places[1:]).reshape(side, side, side, side)
    for row in range(side):
        for column in range(side):
            steps = torch.tensor([[abs(y - row) + abs(x - column) for x in range(side)] for y in range(side)])
            found = distances[row, column]
            assert found[steps == 1].max() < found[steps > 1].min()
            assert found[steps == 1].min() > 0.1, "no two are the same"


def test_places_are_sines_and_cosines_of_row_and_column(base: Path) -> None:
    tower = open_base(base)
    place(tower)
    # Patch 6 of 4 x 4 is in row 1, column 2. Of 64 numbers 16 waves are for rows; the second is slower by 100^(1/16).
    found, rate = places_of(tower)[1 + 6], 1.5 / 100 ** (1 / 16)
    expected = {0: math.sin(1.5), 1: math.sin(rate), 16: math.sin(3.0), 32: math.cos(1.5), 48: math.cos(3.0)}
    assert {at: float(found[at]) for at in expected} == pytest.approx({at: 0.5 * of for at, of in expected.items()})


class Says:
    """A model whose patch logits are given."""

    def __init__(self, logits: dict[str, torch.Tensor]) -> None:
        self.logits = logits

    def __call__(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        return self.logits


def sure_of(labels: dict[str, list[int]]) -> dict[str, torch.Tensor]:
    """Return logits that say these classes of the patches of one picture, without doubt."""
    return {
        name: 100.0 * torch.nn.functional.one_hot(torch.tensor([labels[name]]), classes).float()
        for name, classes in PATCH_CLASSES.items()
    }


def batch_of(labels: dict[str, list[int]]) -> Batch:
    return {"pixels": torch.zeros(1), **{f"patch.{name}": torch.tensor([each]) for name, each in labels.items()}}


EMPTY = {name: classes - 1 for name, classes in PATCH_CLASSES.items()}
# Three patches: the first is of an object, the others are empty.
TRUTH = {name: [0, EMPTY[name], EMPTY[name]] for name in PATCH_CLASSES}


def test_right_readings_cost_nothing() -> None:
    found = sight_loss_of(Says(sure_of(TRUTH)), batch_of(TRUTH))
    assert {name: float(value) for name, value in found.items()} == {"loss": 0, "right": 1, "shapes_right": 1}


@pytest.mark.parametrize(
    ("name", "patch", "loss"),
    [
        # One of three patches says what has no chance: 100 / 3 in the mean over all patches. What is of an object
        # counts once more, in the mean over the one patch of an object, and its shape twice more.
        ("color", 0, 100 / 3 + 100),
        ("shape", 0, 100 / 3 + 200),
        ("shape", 1, 100 / 3),
        ("ground", 0, 100 / 3),
    ],
)
def test_wrong_reading_costs_by_what_it_is_of(name: str, patch: int, loss: float) -> None:
    said = {each: list(labels) for each, labels in TRUTH.items()}
    said[name][patch] = 1
    found = sight_loss_of(Says(sure_of(said)), batch_of(TRUTH))
    assert float(found["loss"]) == pytest.approx(loss)
    assert float(found["right"]) == pytest.approx(1 - 1 / 3 / len(PATCH_CLASSES))
    assert float(found["shapes_right"]) == (0 if (name, patch) == ("shape", 0) else 1)


def test_export_is_read_as_a_tower_and_sees_as_the_trained_one(base: Path, tmp_path: Path) -> None:
    recipe = recipe_of(f"base={base}", f"out={tmp_path}", *SMALL)
    fitted = fit_recipe(recipe)
    export(recipe, fitted)
    exported = CLIPVisionModel.from_pretrained(tmp_path / "vision_tower").eval()
    before = load_file(base / "model.safetensors")
    after = load_file(tmp_path / "vision_tower" / "model.safetensors")
    assert before.keys() == after.keys()
    assert not torch.equal(before["vision_model.embeddings.patch_embedding.weight"], patch_embedding(exported))
    model = fitted.model.eval()
    assert isinstance(model, Sighted)
    pictures = torch.rand(2, 3, 56, 56)
    with torch.no_grad():
        learned, read = (tower(pictures).last_hidden_state for tower in (model.vision_tower, exported))
    assert torch.equal(learned, read)
    crop = json.loads((tmp_path / "vision_tower" / "preprocessor_config.json").read_text())["crop_size"]
    assert crop == {"height": 56, "width": 56}


def patch_embedding(tower: Any) -> torch.Tensor:
    (weight,) = [each for name, each in tower.state_dict().items() if name.endswith("patch_embedding.weight")]
    assert isinstance(weight, torch.Tensor)
    return weight


def test_export_has_the_averaged_weights_where_the_recipe_averages(base: Path, tmp_path: Path) -> None:
    recipe = recipe_of(f"base={base}", f"out={tmp_path}", *SMALL, "plan.ema_decay=0.5")
    fitted = fit_recipe(recipe)
    assert fitted.ema is not None
    last = patch_embedding(fitted.model.vision_tower).clone()
    export(recipe, fitted)
    exported = patch_embedding(CLIPVisionModel.from_pretrained(tmp_path / "vision_tower"))
    (averaged,) = [each for name, each in fitted.ema.items() if name.endswith("patch_embedding.weight")]
    assert torch.equal(exported, averaged)
    assert not torch.equal(exported, last)


def test_base_that_is_none_is_refused_with_a_remedy(base: Path, tmp_path: Path) -> None:
    def refused(folder: Path, problem: str) -> None:
        with pytest.raises(CheckpointError, match=problem) as caught:
            train(recipe_of(f"base={folder}", f"out={tmp_path / 'run'}", *SMALL))
        assert str(caught.value).startswith(str(folder))
        assert "training.bases.clip" in str(caught.value)
        assert not (tmp_path / "run").exists()

    refused(tmp_path / "none", "holds no vision tower")
    refused(tmp_path, "holds no vision tower")
    cut = tmp_path / "cut"
    cut.mkdir()
    (cut / "config.json").write_bytes((base / "config.json").read_bytes())
    (cut / "model.safetensors").write_bytes((base / "model.safetensors").read_bytes()[:-100])
    refused(cut, "holds no vision tower")
    tensors = load_file(base / "model.safetensors")
    del tensors["vision_model.embeddings.patch_embedding.weight"]
    save_file(tensors, cut / "model.safetensors", metadata={"format": "pt"})
    refused(cut, "lacks 1 tensors of a vision tower, as .*patch_embedding")
