"""Stable Diffusion checkpoints in diffusers layout: opened for training, and written with a trained UNet.

An export is the base's folder with another UNet and a `model_index.json` that names the pipeline for the UNet that is
there: the published inpainting checkpoints name the wrong one (LLMGA.md §7.3).
"""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file

from services.diffusion.conditioning.encoder import TokenizerVocabulary
from services.diffusion.libraries import (
    AutoencoderKL,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    UNet2DConditionModel,
    quiet,
)
from training.runs.records import write_json

Kind = Literal["sd15", "sdxl"]
LATENT_CHANNELS, INPAINTING_CHANNELS = 4, 9
WEIGHTS = {
    "unet": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
    "text_encoder_2": "model.safetensors",
}
_COPIED = ("vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler")
_PIPELINES = {
    ("sd15", False): "StableDiffusionPipeline",
    ("sd15", True): "StableDiffusionInpaintPipeline",
    ("sdxl", False): "StableDiffusionXLPipeline",
    ("sdxl", True): "StableDiffusionXLInpaintPipeline",
}


SCHEDULER: Mapping[str, Any] = {  # as published with SD1.5
    "_class_name": "PNDMScheduler",
    "_diffusers_version": "0.6.0",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "num_train_timesteps": 1_000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
}


class CheckpointError(Exception):
    """The folder is not the checkpoint that the recipe needs."""


@dataclass(frozen=True)
class Parts:
    """A checkpoint in memory: the UNet in float32, which learns, and what stays as it is."""

    folder: Path
    kind: Kind
    unet: Any
    vae: Any
    text_encoder: Any
    second: Any
    vocabulary: TokenizerVocabulary
    second_vocabulary: TokenizerVocabulary | None
    scheduler: dict[str, Any]


def open_checkpoint(folder: Path, kind: Kind, *, inpainting: bool) -> Parts:
    """Load a checkpoint by explicit classes, safetensors only.

    A text-to-image UNet is widened where an inpainting one is to be trained.

    Raises:
        CheckpointError: a part is missing, or the folder is of another kind.
    """
    quiet()
    for part in (*WEIGHTS, "tokenizer", "scheduler"):
        if (kind == "sdxl" or part != "text_encoder_2") and not (folder / part).is_dir():
            raise CheckpointError(f"{folder / part} is missing; give a whole {kind} checkpoint in diffusers layout")
    unet = _load(UNet2DConditionModel, folder / "unet")
    found: Kind = "sdxl" if unet.config.addition_embed_type == "text_time" else "sd15"
    if found != kind:
        raise CheckpointError(f"{folder} is of the kind {found}, the recipe's is {kind}")
    if inpainting and unet.config.in_channels == LATENT_CHANNELS:
        unet = widened(unet)
    wanted = INPAINTING_CHANNELS if inpainting else LATENT_CHANNELS
    if unet.config.in_channels != wanted:
        raise CheckpointError(
            f"{folder / 'unet'} has {unet.config.in_channels} input channels, the recipe needs {wanted}"
        )
    is_sdxl = kind == "sdxl"
    return Parts(
        folder=folder,
        kind=kind,
        unet=unet,
        vae=_frozen(_load(AutoencoderKL, folder / "vae")),
        text_encoder=_frozen(_load(CLIPTextModel, folder / "text_encoder")),
        second=_frozen(_load(CLIPTextModelWithProjection, folder / "text_encoder_2")) if is_sdxl else None,
        vocabulary=_vocabulary(folder / "tokenizer"),
        second_vocabulary=_vocabulary(folder / "tokenizer_2") if is_sdxl else None,
        scheduler=UNet2DConditionModel.load_config(folder / "scheduler" / "scheduler_config.json"),
    )


def _load(part_class: Any, folder: Path) -> Any:
    return part_class.from_pretrained(folder, use_safetensors=True, local_files_only=True)


def _frozen(part: Any) -> Any:
    return part.eval().requires_grad_(False)


def _vocabulary(folder: Path) -> TokenizerVocabulary:
    return TokenizerVocabulary(CLIPTokenizer.from_pretrained(folder, local_files_only=True))


@torch.no_grad()
def widened(unet: Any) -> Any:
    """Return a UNet with nine input channels that does at first what the one with four does."""
    config = {**unet.config, "in_channels": INPAINTING_CHANNELS}
    wide = UNet2DConditionModel.from_config(config)
    tensors = unet.state_dict()
    narrow = tensors.pop("conv_in.weight")
    weight = torch.zeros_like(wide.conv_in.weight)
    weight[:, :LATENT_CHANNELS] = narrow
    wide.load_state_dict({**tensors, "conv_in.weight": weight})
    return wide


def write_checkpoint(folder: Path, parts: Parts, unet: Any, dtype: torch.dtype) -> None:
    """Write a checkpoint with this UNet in place of the base's, all weights in one dtype."""
    inpainting = unet.config.in_channels == INPAINTING_CHANNELS
    beside = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    for part in _COPIED:
        if (parts.folder / part).is_dir():
            shutil.copytree(parts.folder / part, beside / part, ignore=shutil.ignore_patterns("*.bin", "*.ckpt"))
            if part in WEIGHTS:
                _convert(beside / part / WEIGHTS[part], dtype)
    unet.save_pretrained(beside / "unet", safe_serialization=True)
    _convert(beside / "unet" / WEIGHTS["unet"], dtype)
    name = str(parts.scheduler["_class_name"])
    index = model_index(parts.kind, inpainting=inpainting, scheduler=name)
    write_json(beside / "model_index.json", index)
    if (parts.folder / "serving.json").is_file():
        shutil.copy(parts.folder / "serving.json", beside / "serving.json")
    shutil.rmtree(folder, ignore_errors=True)
    beside.rename(folder)


def _convert(path: Path, dtype: torch.dtype) -> None:
    tensors = {
        name: tensor.to(dtype).contiguous() if tensor.is_floating_point() else tensor
        for name, tensor in load_file(path).items()
    }
    save_file(tensors, path, metadata={"format": "pt"})


def model_index(kind: Kind, *, inpainting: bool, scheduler: str) -> dict[str, Any]:
    """Return `model_index.json` for a checkpoint of this kind."""
    index: dict[str, Any] = {
        "_class_name": _PIPELINES[kind, inpainting],
        "_diffusers_version": "0.42.1",
        "feature_extractor": [None, None],
        "scheduler": ["diffusers", scheduler],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    if kind == "sdxl":
        return index | {
            "force_zeros_for_empty_prompt": True,
            "image_encoder": [None, None],
            "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
            "tokenizer_2": ["transformers", "CLIPTokenizer"],
        }
    return index | {"requires_safety_checker": False, "safety_checker": [None, None]}
