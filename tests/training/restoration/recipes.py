"""Recipes for tests: the smallest networks on small scenes."""

from pathlib import Path
from typing import Any

from training.restoration.recipe import RestorationRecipe

SMALL = {"scale": 1, "dim": 8, "num_blocks": [1, 1, 1, 1], "num_refinement_blocks": 1, "n_feats": 4, "n_encoder_res": 1}
PLAN = {"steps": 3, "global_batch": 2, "micro_batch": 2, "learning_rate": 1e-3, "checkpoint_every": 1, "log_every": 1}


def recipe(out: Path, step: str, **changes: Any) -> RestorationRecipe:
    """Return a recipe of the step; what it needs beside is in `changes`."""
    base = {
        "stage": "restoration",
        "about": "A test.",
        "out": out,
        "step": step,
        "network": SMALL,
        "degradation": {"kind": "seams"},
        "picture_px": 64,
        "crop_px": 64,
        "mask_scale": 0.16,
        "plan": PLAN,
    }
    return RestorationRecipe.model_validate(base | changes)
