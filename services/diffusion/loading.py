"""Checkpoints in memory: explicit classes, safetensors, one dtype, one device."""

import logging
from dataclasses import dataclass
from typing import Any, Literal

import torch

from services.diffusion.batching import Buckets
from services.diffusion.checkpoints import (
    SECOND_ENCODER,
    SECOND_TOKENIZER,
    TIME_IDS,
    CheckpointFiles,
    UnfitCheckpoint,
)
from services.diffusion.conditioning.encoder import PromptEncoder, TokenizerVocabulary
from services.diffusion.libraries import (
    AutoencoderKL,
    CLIPTextModel,
    CLIPTextModelWithProjection,
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
    second_vocabulary: TokenizerVocabulary | None = None  # SDXL

    @property
    def side_px(self) -> int:
        """The model's own side in pixels."""
        return int(self.files.unet.get("sample_size", 64)) * LATENT_PX

    @property
    def guidance_channels(self) -> int | None:
        """The UNet's input for a guidance scale, where it was distilled to have one."""
        channels: int | None = self.files.unet.get("time_cond_proj_dim")
        return channels

    @property
    def pooled_channels(self) -> int | None:
        """Channels of the pooled prompt that SDXL's UNet takes."""
        if self.files.kind != "sdxl":
            return None
        unet = self.files.unet
        return int(unet["projection_class_embeddings_input_dim"]) - TIME_IDS * int(unet["addition_time_embed_dim"])


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
    # SDXL's autoencoder overflows in float16 and says so.
    vae_dtype = torch.float32 if dtype is torch.float16 and files.vae.get("force_upcast") else dtype
    vae = _part(AutoencoderKL, files, "vae", device, vae_dtype)
    text_encoder = _part(CLIPTextModel, files, "text_encoder", device, dtype)
    vocabulary = _vocabulary(files, "tokenizer", text_encoder)
    second = second_vocabulary = None
    if files.kind == "sdxl":
        second = _part(CLIPTextModelWithProjection, files, SECOND_ENCODER, device, dtype)
        second_vocabulary = _vocabulary(files, SECOND_TOKENIZER, second)
    _log.info("loaded", extra={"model": name, "sha256": files.sha256, "dtype": str(dtype), "device": str(device)})
    return LoadedModel(
        name=name,
        files=files,
        device=device,
        dtype=dtype,
        unet=unet,
        vae=vae,
        vocabulary=vocabulary,
        encoder=PromptEncoder(text_encoder, device, dtype, second=second),
        buckets=buckets,
        second_vocabulary=second_vocabulary,
    )


def _vocabulary(files: CheckpointFiles, part: str, text_encoder: Any) -> TokenizerVocabulary:
    tokenizer = CLIPTokenizer.from_pretrained(files.folder / part, local_files_only=True)
    highest = max(tokenizer.get_vocab().values())
    if highest >= text_encoder.config.vocab_size:
        raise UnfitCheckpoint(
            f"{files.folder / part} has ids up to {highest}, but the text encoder has "
            f"{text_encoder.config.vocab_size} embeddings: the parts are of different checkpoints"
        )
    return TokenizerVocabulary(tokenizer)


def _part(part_class: Any, files: CheckpointFiles, part: str, device: torch.device, dtype: torch.dtype) -> Any:
    folder = files.folder / part
    try:
        model, report = part_class.from_pretrained(
            folder,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            **{
                "dtype" if part.startswith("text_encoder") else "torch_dtype": dtype
            },  # transformers' name and diffusers'
        )
    except Exception as error:  # whatever the library found wrong with them
        raise UnfitCheckpoint(f"{folder}: the weights do not fit config.json; copy the folder again") from error
    absent = sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]]))
    if absent:
        raise UnfitCheckpoint(
            f"{folder}: {len(absent)} weights are missing or of another shape ({absent[0]}, …); copy the folder again"
        )
    return model.to(device).eval().requires_grad_(False)
