"""`--dry-run`: a recipe's step on a network of a few thousand parameters, in a folder that is thrown away."""

import shutil
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file

from services.diffusion.restoration.checkpoints import load, save
from services.diffusion.restoration.network import DiffRIRS1, DiffRIRS2
from training.restoration.adversary import WEIGHTS, Perceptual
from training.restoration.recipe import RestorationRecipe
from training.restoration.steps import JOINT, load_teacher, save_teacher, train
from training.runs.checkpoints import latest


def dry_run(recipe: RestorationRecipe) -> None:
    """Take two steps with a checkpoint between them, go on from the first, export, and read the export."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        small = recipe.dry()
        torch.manual_seed(0)
        save_teacher(DiffRIRS1(small.network), folder / "teacher")
        save(DiffRIRS2(small.network), folder / "start")
        if recipe.step == "gan":
            (folder / "vgg").mkdir()
            save_file(Perceptual(narrower=16).state_dict(), folder / "vgg" / WEIGHTS)
        places = {"teacher": folder / "teacher", "start": folder / "start", "perceptual": folder / "vgg"}
        given = {name: place for name, place in places.items() if getattr(recipe, name) is not None}
        small = small.model_copy(update={"out": folder / "out", **given})
        train(small)
        run = small.out / JOINT if recipe.step == "s2" else small.out
        shutil.rmtree(latest(run) or run)  # as if the process had been killed after its first step
        export = train(small)
        read = load_teacher if recipe.step == "s1" else load
        read(export)
