"""The tiny language model's eyes: a vision tower that learns on until each patch knows the object it is of.

    accelerate launch -m training.bases.tower --recipe training/recipes/tiny-tower.yaml

CLIP's tower, as contrast with texts leaves it, knows colors and backgrounds and hardly any shape, and a language model
whose tower is frozen (LLMGA.md §1.4) can say no more than the tower knows. So it goes on here with the readings of its
patches alone (`training.bases.alignment`). Its run leaves `vision_tower/`; text encoders stay as they were.
"""

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.recipes import Recipe
from training.recipes.command import run

if TYPE_CHECKING:
    from training.runs import Fitted

STAGE = "tower"


class TowerRecipe(Recipe):
    """base: folder of the `CLIPVisionModel` to begin with."""

    base: Path


def place(tower: Any) -> None:
    """Give a tower's patches their places as sines and cosines of row and column (Beyer et al. 2022).

    Patches then find their neighbors from the first step on; with places that are learned from noise, that alone takes
    tens of thousands of pictures.
    """
    import torch

    side = tower.config.image_size // tower.config.patch_size
    waves = tower.config.hidden_size // 4
    rates = 1.5 / 100 ** (torch.arange(waves) / waves)  # radians a patch
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    angles = torch.cat([rows.reshape(-1, 1) * rates, columns.reshape(-1, 1) * rates], dim=1)
    (places,) = [part for name, part in tower.named_modules() if name.endswith("position_embedding")]
    with torch.no_grad():
        places.weight[1:] = 0.5 * torch.cat([angles.sin(), angles.cos()], dim=1)  # the class token has its own


def open_base(folder: Path) -> Any:
    """Load the tower to begin with.

    Raises:
        CheckpointError: the folder has none, or one whose patches `place` cannot place.
    """
    import torch

    from services.diffusion.libraries import CLIPVisionModel, quiet
    from training.checkpoints import CheckpointError

    quiet()
    remedy = "give the `vision_tower/` that `training.bases.clip` has written"
    try:
        tower, loaded = CLIPVisionModel.from_pretrained(
            folder, use_safetensors=True, local_files_only=True, dtype=torch.float32, output_loading_info=True
        )
    except Exception as error:  # the library raises anything on a folder of another kind
        raise CheckpointError(f"{folder} holds no vision tower ({type(error).__name__}); {remedy}") from None
    if missing := sorted(loaded["missing_keys"]):
        raise CheckpointError(f"{folder} lacks {len(missing)} tensors of a vision tower, as {missing[0]}; {remedy}")
    if tower.config.hidden_size % 4:
        raise CheckpointError(f"{folder} is {tower.config.hidden_size} wide, which is no multiple of 4; {remedy}")
    return tower


def train(recipe: TowerRecipe) -> Path:
    """Train and write `vision_tower/` into the run's folder; return it."""
    return export(recipe, fit_recipe(recipe))


def fit_recipe(recipe: TowerRecipe) -> "Fitted":
    """Train by the recipe."""
    import torch

    from training.bases.alignment import LabeledPictures, Sighted, collate_seen, sight_loss_of
    from training.runs import fit

    torch.manual_seed(recipe.plan.seed)  # of the readings
    tower = open_base(recipe.base)
    place(tower)
    pictures = LabeledPictures(tower.config.image_size, tower.config.patch_size)
    return fit(
        Sighted(tower),
        sight_loss_of,
        pictures,
        collate_seen,
        recipe.plan.plan(examples=len(pictures)),
        recipe.out,
        loaders=recipe.loaders,
        tags={"recipe": recipe.model_dump(mode="json")},
    )


def export(recipe: TowerRecipe, fitted: "Fitted") -> Path:
    """Write the tower; the main process does."""
    from training.bases.export import write_vision_tower

    if fitted.is_main:
        model = fitted.averaged() if fitted.ema else fitted.model
        write_vision_tower(recipe.out / "vision_tower", model.vision_tower)
    return recipe.out


def dry_run(recipe: TowerRecipe) -> None:
    """Take two steps from random weights, resume from the first and export."""
    from training.minis.bases import build_tower
    from training.runs.resuming import run_twice

    with tempfile.TemporaryDirectory() as folder:
        build_tower(Path(folder) / "base")
        changes = {"base": Path(folder) / "base", "out": Path(folder) / "run", "plan": recipe.plan.dry()}
        dry = recipe.model_copy(update=changes)
        export(dry, run_twice(lambda: fit_recipe(dry), dry.out))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    return run("training.bases.tower", __doc__, TowerRecipe, STAGE, arguments, train=train, dry_run=dry_run)


if __name__ == "__main__":
    sys.exit(main())
