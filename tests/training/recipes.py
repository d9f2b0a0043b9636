"""The recipes in the repository, by stage, and mini runs of the language model's stages."""

from pathlib import Path
from typing import Any

import yaml

from training.minis.bases import build_base, build_tower
from training.minis.data import write_data
from training.recipes.recipe import FOLDER, stage_of

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
