"""What every recipe says, and how a YAML file becomes one.

A stage adds its own fields in a subclass of `Recipe`. Unknown keys are refused: a misspelled number would train for a
week with its default. Paths are those of the folder in which the command runs.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from training.plan import Plan, PlanError, Precision, Schedule

FOLDER = Path(__file__).parent
DRY_STEPS = 2  # of `--dry-run`


class RecipeError(Exception):
    """A recipe is missing, is no YAML, or says what makes no sense."""


class Settings(BaseModel):
    """A part of a recipe."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class PlanSettings(Settings):
    """The numbers of `training.runs.Plan`; its length may be given in passes over the data, its warm-up as a share."""

    steps: int | None = Field(None, ge=1)
    epochs: float | None = Field(None, gt=0)
    global_batch: int = Field(ge=1)
    micro_batch: int = Field(ge=1)
    learning_rate: float = Field(gt=0)
    schedule: Schedule = "constant"
    warmup_steps: int = Field(0, ge=0)
    warmup_ratio: float = Field(0.0, ge=0, lt=1)
    restarts: tuple[int, ...] = ()
    milestones: tuple[int, ...] = ()
    decay: float = 0.5
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    max_grad_norm: float | None = 1.0
    precision: Precision = "no"
    ema_decay: float | None = None
    checkpoint_every: int = 1_000
    keep_checkpoints: int = 2
    log_every: int = 10
    seed: int = 0

    @model_validator(mode="after")
    def _one_length(self) -> "PlanSettings":
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give either steps or epochs")
        if self.warmup_steps and self.warmup_ratio:
            raise ValueError("give either warmup_steps or warmup_ratio")
        return self

    def plan(self, examples: int) -> Plan:
        """Return the plan of a run over so many examples."""
        steps = self.steps or math.ceil((self.epochs or 0) * examples / self.global_batch)
        warmup = self.warmup_steps or math.ceil(self.warmup_ratio * steps)
        numbers = {field.name: getattr(self, field.name) for field in fields(Plan)}
        return Plan(**(numbers | {"steps": max(1, steps), "warmup_steps": warmup}))

    def dry(self) -> "PlanSettings":
        """Return the same for a dry run: two steps, of two micro-batches of one example each."""
        changes = {
            "steps": DRY_STEPS,
            "epochs": None,
            "warmup_steps": 0,
            "warmup_ratio": 0.0,
            "restarts": (),
            "global_batch": 2,
            "micro_batch": 1,
            "checkpoint_every": 1,
            "keep_checkpoints": DRY_STEPS,
            "log_every": 1,
        }
        return self.model_copy(update=changes)


class Recipe(Settings):
    """What every stage's recipe has.

    about: one sentence for people. out: the run's folder. loaders: threads that prepare examples.
    """

    stage: str
    about: str
    out: Path
    plan: PlanSettings
    loaders: int = Field(1, ge=0)


R = TypeVar("R", bound=Recipe)


def load_recipe(path: Path, schema: type[R], changes: Sequence[str] = ()) -> R:
    """Read a recipe; `changes` are `key=value`, keys with dots, values in YAML, on top of the file's.

    Raises:
        RecipeError: it cannot be used; the message names the file, the key and what is wrong there.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        known = ", ".join(sorted(file.stem for file in FOLDER.glob("*.yaml")))
        raise RecipeError(f"{path}: it cannot be read ({error.strerror}); recipes here: {known}") from None
    except yaml.YAMLError as error:
        raise RecipeError(f"{path}: it is no YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise RecipeError(f"{path}: a recipe is a mapping of keys to values")
    for change in changes:
        key, is_change, value = change.partition("=")
        if not is_change:
            raise RecipeError(f"--set {change}: write it as key=value")
        _set(content, key.split("."), yaml.safe_load(value))
    try:
        recipe = schema.model_validate(content)
        recipe.plan.plan(examples=recipe.plan.global_batch)
    except ValidationError as error:
        found = "; ".join(f"{'.'.join(map(str, each['loc'])) or 'recipe'}: {each['msg']}" for each in error.errors())
        raise RecipeError(f"{path}: {found}") from None
    except PlanError as error:
        raise RecipeError(f"{path}: plan: {error}") from None
    return recipe


def _set(content: dict[str, Any], keys: Sequence[str], value: Any) -> None:
    for key in keys[:-1]:
        inner = content.setdefault(key, {})
        if not isinstance(inner, dict):
            raise RecipeError(f"--set {'.'.join(keys)}: {key} is no mapping")
        content = inner
    content[keys[-1]] = value


def stage_of(path: Path) -> str:
    """Return the stage that a recipe's file is for."""
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    stage = content.get("stage") if isinstance(content, Mapping) else None
    if not isinstance(stage, str):
        raise RecipeError(f"{path}: it names no stage")
    return stage
