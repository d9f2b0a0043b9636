"""What the language model's two stages share: the model and the data of a recipe, and how they are fitted."""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from training.adapters import add_adapters, changes, is_adapter
from training.data.collator import Collator, learned_tokens
from training.data.conversations import Rules
from training.data.formats import read_items
from training.data.mixture import Mixture
from training.data.pictures import TowerInput
from training.data.tokens import prompt_builder
from training.export import export_projector, export_published
from training.llava import PROJECTOR_FILE, Llava, load_llava, new_projector, read_projector
from training.recipes.mllm import JsonData, MLLMRecipe
from training.runs import Batch, Fitted, fit

_log = logging.getLogger("llmga.training")


def build(recipe: MLLMRecipe) -> Llava:
    """Return the model of a recipe, before training: the same in every process."""
    adapter = recipe.adapter
    torch.manual_seed(recipe.plan.seed)  # of the new projector, and of adapters
    llava = load_llava(
        recipe.base,
        recipe.tower,
        attention=recipe.attention,
        bits=adapter.bits if adapter else None,
        gradient_checkpointing=recipe.gradient_checkpointing,
    )
    if adapter:
        add_adapters(llava.language_model, rank=adapter.rank, alpha=adapter.alpha, dropout=adapter.dropout)
    if recipe.projector:
        llava.projector.load_state_dict(read_projector(recipe.projector))
    return llava


def mixture_of(recipe: MLLMRecipe, image_tokens: int) -> Mixture:
    """Return the examples of a recipe; how many items of each file are used is logged."""
    sets = []
    for source in recipe.data:
        items = read_items(
            source.json_file, source.kind, images=source.images, on_error=recipe.on_error, at_most=source.at_most
        )
        _log.info("%s", items.counts)
        sets.append(items)
    return Mixture(
        sets,
        prompt_builder(recipe.base, recipe.family),
        Rules(recipe.shaping, recipe.side, recipe.chinese),
        TowerInput.of(recipe.tower),
        image_tokens=image_tokens,
        max_length=recipe.max_length,
        on_error=recipe.on_error,
    )


def fit_recipe(recipe: MLLMRecipe, path: Path) -> Fitted:
    """Train as a recipe says; `path` is the recipe's file.

    pretrain: the projector alone. stage1: the projector and the whole language model, or its adapters. The tower
    never changes.
    """
    llava = build(recipe)
    mixture = mixture_of(recipe, llava.image_tokens)
    collator = Collator(llava.image_tokens, recipe.max_length, TowerInput.of(recipe.tower).side)
    fitted = fit(
        llava,
        _loss_of,
        mixture,
        collator,
        recipe.plan.plan(len(mixture)),
        recipe.out,
        trainable=_trainable(recipe),
        weight_of=learned_tokens,
        loaders=recipe.loaders,
        tags={"stage": recipe.stage, "recipe": path.name, "family": recipe.family, "base": str(recipe.base)},
    )
    if mixture.counts:
        _log.info("conversations: %s", ", ".join(f"{count} {what}" for what, count in mixture.counts.items()))
    return fitted


def _loss_of(model: Any, batch: Batch) -> Any:
    return model(**batch)


def _trainable(recipe: MLLMRecipe) -> Callable[[str], bool]:
    def learns(name: str) -> bool:
        if name.startswith("projector."):
            return True
        if recipe.stage == "pretrain" or not name.startswith("language_model."):
            return False
        return recipe.adapter is None or is_adapter(name)

    return learns


def export_recipe(recipe: MLLMRecipe, fitted: Fitted) -> Path:
    """Write the trained model in the published layout to `out`/checkpoint; return that folder."""
    folder = recipe.out / "checkpoint"
    tensors = fitted.state_dict()
    if not fitted.is_main:
        return folder
    parts = {
        part: {name.removeprefix(part): tensor for name, tensor in tensors.items() if name.startswith(part)}
        for part in ("language_model.", "projector.")
    }
    export_published(
        folder,
        family=recipe.family,
        base=recipe.base,
        tower=recipe.tower,
        language_model=None if recipe.adapter else parts["language_model."],
        changes=changes(fitted.model.language_model) if recipe.adapter else {},
        projector=parts["projector."],
        tells_changes=recipe.tells_changes,
        dtype=getattr(torch, recipe.saved_as),
    )
    shutil.copyfile(recipe.out / "meta.json", folder / "meta.json")
    return folder


def dry_recipe(recipe: MLLMRecipe, folder: Path) -> MLLMRecipe:
    """Return a recipe's dry run: random mini checkpoints of its family, and a few items of each of its formats."""
    from training.minis.bases import HIDDEN, build_base, build_tower
    from training.minis.data import write_data

    build_base(folder / "base", recipe.family)
    build_tower(folder / "clip-mini")
    write_data(folder / "data")
    changed: dict[str, Any] = {
        "base": folder / "base",
        "tower": folder / "clip-mini",
        "data": [_dry_data(source, folder / "data") for source in recipe.data],
        "out": folder / "run",
        "plan": recipe.plan.dry(),
        "side": 64,
    }
    if recipe.projector:
        changed["projector"] = folder / PROJECTOR_FILE
        tower_hidden = json.loads((folder / "clip-mini" / "config.json").read_text(encoding="utf-8"))["hidden_size"]
        export_projector(changed["projector"], new_projector(tower_hidden, HIDDEN).state_dict())
    return recipe.model_copy(update=changed)


def _dry_data(source: JsonData, folder: Path) -> JsonData:
    return source.model_copy(update={"json_file": folder / f"{source.kind}.json", "images": folder})
