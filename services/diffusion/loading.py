"""Checkpoints in memory: explicit classes, safetensors, one dtype, one device."""

import logging
from dataclasses import dataclass
from typing import Any, Literal

import torch

from services.diffusion.batching import Buckets
from services.diffusion.checkpoints import CheckpointFiles, UnfitCheckpoint
from services.diffusion.conditioning.encoder import PromptEncoder, TokenizerVocabulary
from services.diffusion.libraries import (
    AutoencoderKL,
    CLIPTextModel,
    CLIPTokenizer,
    UNet2DConditionModel,
    quiet,
)
from services.diffusion.requests import LATENT_PX
from shared.settings import SettingsError

Dtype = Literal["auto", "bfloat16", "float16", "float32"]

_log = logging.getLogger("llmga.diffusion")


@dataclass(slots=True)
class LoadedModel:
    """A checkpoint that can be asked; everything that holds weights belongs to the device thread."""

    name: str
    files: CheckpointFiles
    device: torch.device
    dtype: torch.dtype
    unet: Any
    vae: Any
    vocabulary: TokenizerVocabulary
    encoder: PromptEncoder
    buckets: Buckets

    @property
    def side_px(self) -> int:
        """The model's own side in pixels."""
        return int(self.files.unet.get("sample_size", 64)) * LATENT_PX

    @property
    def guidance_channels(self) -> int | None:
        """The UNet's input for a guidance scale, where it was distilled to have one."""
        channels: int | None = self.files.unet.get("time_cond_proj_dim")
        return channels


def resolve_device(name: str) -> torch.device:
    """Return the device of a setting; `auto` is the first CUDA device, or the CPU.

    Raises:
        SettingsError: the device is not there.
    """
    if name == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        found = torch.cuda.device_count()
        raise SettingsError([f"LLMGA_DEVICE: {name} is not there ({found} CUDA devices found); use cpu or auto"])
    return device


def resolve_dtype(name: Dtype, device: torch.device) -> torch.dtype:
    """Return the dtype of a setting; `auto` is float16 on CUDA, as checkpoints are published, else float32.

    Raises:
        SettingsError: the device has no fast arithmetic of that kind.
    """
    if name == "auto":
        return torch.float16 if device.type == "cuda" else torch.float32
    if name == "float16" and device.type == "cpu":
        raise SettingsError(["LLMGA_DIFFUSION__DTYPE: float16 is slow on a CPU; use float32, bfloat16 or auto"])
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def load(
    name: str, files: CheckpointFiles, *, device: torch.device, dtype: torch.dtype, buckets: Buckets
) -> LoadedModel:
    """Load an inspected checkpoint.

    Raises:
        UnfitCheckpoint: the weights are not those that the configurations describe.
    """
    quiet()
    unet = _part(UNet2DConditionModel, files, "unet", device, dtype)
    vae = _part(AutoencoderKL, files, "vae", device, dtype)
    text_encoder = _part(CLIPTextModel, files, "text_encoder", device, dtype)
    tokenizer = CLIPTokenizer.from_pretrained(files.folder / "tokenizer", local_files_only=True)
    highest = max(tokenizer.get_vocab().values())
    if highest >= text_encoder.config.vocab_size:
        raise UnfitCheckpoint(
            f"{files.folder / 'tokenizer'} has ids up to {highest}, but the text encoder has "
            f"{text_encoder.config.vocab_size} embeddings: the parts are of different checkpoints"
        )
    _log.info("loaded", extra={"model": name, "sha256": files.sha256, "dtype": str(dtype), "device": str(device)})
    return LoadedModel(
        name=name,
        files=files,
        device=device,
        dtype=dtype,
        unet=unet,
        vae=vae,
        vocabulary=TokenizerVocabulary(tokenizer),
        encoder=PromptEncoder(text_encoder, device, dtype),
        buckets=buckets,
    )


def _part(part_class: Any, files: CheckpointFiles, part: str, device: torch.device, dtype: torch.dtype) -> Any:
    folder = files.folder / part
    try:
        model, report = part_class.from_pretrained(
            folder,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            **{"dtype" if part == "text_encoder" else "torch_dtype": dtype},  # transformers' name and diffusers'
        )
    except Exception as error:  # whatever the library found wrong with them
        raise UnfitCheckpoint(f"{folder}: the weights do not fit config.json; copy the folder again") from error
    absent = sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]]))
    if absent:
        raise UnfitCheckpoint(
            f"{folder}: {len(absent)} weights are missing or of another shape ({absent[0]}, …); copy the folder again"
        )
    return model.to(device).eval().requires_grad_(False)
