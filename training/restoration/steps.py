"""A recipe's step from start to export."""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import PartialState
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from services.diffusion.checkpoints import UnfitCheckpoint
from services.diffusion.restoration.checkpoints import CONFIG, WEIGHTS, load, save
from services.diffusion.restoration.config import RestorationConfig
from services.diffusion.restoration.network import DiffRIRS1, DiffRIRS2
from training.data.degradations import Degradation, RealESRGAN, Seams
from training.data.masks import DIFFRIR
from training.recipes import PlanSettings
from training.restoration.adversary import Critic, Perceptual
from training.restoration.examples import Degraded, Folder, World, collate_for
from training.restoration.objectives import (
    AdversarialObjective,
    EncoderObjective,
    JointObjective,
    TeacherObjective,
    loss_of,
)
from training.restoration.recipe import RestorationRecipe
from training.runs import fit

EXPORT = "export"
ENCODER, JOINT = "encoder", "joint"  # runs of the step s2
META = "meta.json"

_log = logging.getLogger("llmga.training")


def train(recipe: RestorationRecipe) -> Path:
    """Run the step and return the folder of its export.

    Raises:
        UnfitCheckpoint: the teacher or the start cannot be used.
        MissingWeights: VGG19's weights are not there.
        DataError: there are no pictures.
    """
    torch.manual_seed(recipe.plan.seed)
    if recipe.step == "s1":
        return _train_teacher(recipe)
    assert recipe.teacher is not None
    teacher = load_teacher(recipe.teacher)
    _check_same(teacher.config, recipe.network, recipe.teacher)
    return _train_student(recipe, teacher) if recipe.step == "s2" else _train_against_critic(recipe, teacher)


def _train_teacher(recipe: RestorationRecipe) -> Path:
    objective = TeacherObjective(DiffRIRS1(recipe.network))
    _fit(objective, TeacherObjective.trainable, recipe, recipe.plan, recipe.out)
    return _exported(recipe, recipe.out, lambda folder: save_teacher(objective.teacher, folder))


def _train_student(recipe: RestorationRecipe, teacher: DiffRIRS1) -> Path:
    student = DiffRIRS2(recipe.network)
    student.G.load_state_dict(teacher.G.state_dict())
    encoder, joint = EncoderObjective(student, teacher), JointObjective(student, teacher)
    assert recipe.encoder_plan is not None
    _fit(encoder, EncoderObjective.trainable, recipe, recipe.encoder_plan, recipe.out / ENCODER)
    _fit(joint, JointObjective.trainable, recipe, recipe.plan, recipe.out / JOINT)
    return _exported(recipe, recipe.out / JOINT, lambda folder: _save_student(student, recipe, folder))


def _train_against_critic(recipe: RestorationRecipe, teacher: DiffRIRS1) -> Path:
    assert recipe.start is not None
    assert recipe.perceptual is not None
    student = load(recipe.start)
    _check_same(student.config, recipe.network, recipe.start)
    critic = Critic(recipe.critic_channels)
    objective = AdversarialObjective(student, teacher, critic, Perceptual.load(recipe.perceptual))
    _fit(objective, AdversarialObjective.trainable, recipe, recipe.plan, recipe.out)
    return _exported(recipe, recipe.out, lambda folder: _save_student(student, recipe, folder))


def _fit(
    objective: nn.Module, trainable: Callable[[str], bool], recipe: RestorationRecipe, plan: PlanSettings, folder: Path
) -> None:
    """Train the objective's networks in place; they end with their averages where the plan has them."""
    examples = examples_of(recipe)
    fitted = fit(
        objective,
        loss_of,
        examples,
        collate_for(recipe.network.ipr_channels),
        plan.plan(len(examples)),
        folder,
        trainable=trainable,
        loaders=recipe.loaders,
        tags={"recipe": recipe.model_dump(mode="json")},
    )
    if fitted.ema is not None:
        fitted.averaged()
    if examples.counts:
        _log.info("pictures: %s", ", ".join(f"{count} {what}" for what, count in examples.counts.items()))


def examples_of(recipe: RestorationRecipe) -> Degraded:
    """Return the examples that a recipe names."""
    return Degraded(
        source=World(recipe.picture_px) if recipe.pictures is None else Folder.of(recipe.pictures),
        degradation=_degradation(recipe),
        masks=DIFFRIR.scaled(recipe.mask_scale),
        scale=recipe.network.scale,
        picture_px=recipe.picture_px,
        crop_px=recipe.crop_px,
        sharpened=recipe.sharpened,
        on_error=recipe.on_error,
    )


def _degradation(recipe: RestorationRecipe) -> Degradation:
    settings = recipe.degradation
    if settings.kind == "real-esrgan":
        return RealESRGAN(settings.contrast)
    return Seams(settings.contrast, settings.brightness, settings.tint)


def _exported(recipe: RestorationRecipe, run: Path, write: Callable[[Path], None]) -> Path:
    """Write the export beside the run, with the run's `meta.json`; only the main process does."""
    folder = recipe.out / EXPORT
    state = PartialState()
    if state.is_main_process:
        write(folder)
        shutil.copyfile(run / META, folder / META)
    state.wait_for_everyone()
    return folder


def _save_student(student: DiffRIRS2, recipe: RestorationRecipe, folder: Path) -> None:
    save(student, folder, dtype=getattr(torch, recipe.export_dtype))


def save_teacher(teacher: DiffRIRS1, folder: Path) -> None:
    """Write an S1 network under its published names; it is never served."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in teacher.state_dict().items()}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / CONFIG).write_text(teacher.config.model_dump_json(indent=2) + "\n", encoding="utf-8")


def load_teacher(folder: Path) -> DiffRIRS1:
    """Load what `save_teacher` wrote.

    Raises:
        UnfitCheckpoint: it is no S1 network.
    """
    try:
        config = RestorationConfig.model_validate(json.loads((folder / CONFIG).read_text(encoding="utf-8")))
        teacher = DiffRIRS1(config)
        teacher.load_state_dict(load_file(folder / WEIGHTS))
    except (OSError, ValueError, SafetensorError, RuntimeError):
        raise UnfitCheckpoint(
            f"{folder} is not the export of an S1 network; run the recipe of its step s1 first, or correct `teacher`"
        ) from None
    return teacher.requires_grad_(False)


def _check_same(found: RestorationConfig, wanted: RestorationConfig, folder: Path) -> None:
    different = [name for name, value in wanted if getattr(found, name) != value]
    if different:
        raise UnfitCheckpoint(f"{folder} is of another network: {', '.join(different)} differ from the recipe's")
