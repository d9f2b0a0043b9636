"""Checkpoints of the real sizes of SD1.5 and SDXL with random weights, for measuring speed.

Tokenizers, scheduler and layout are those of the mini checkpoints; the networks have the published configurations. The
networks are drawn on the device that is measured, in bf16: on a CPU, drawing SDXL takes minutes.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from services.diffusion.libraries import (
    AutoencoderKL,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    UNet2DConditionModel,
)
from training.bases.export import write_text_encoder
from training.minis.diffusion import build_sd15, build_sdxl

_CLIP_L: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "projection_dim": 768,
    "hidden_act": "quick_gelu",
}
_CLIP_BIG_G: dict[str, Any] = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "projection_dim": 1280,
    "hidden_act": "gelu",
}
_VAE: dict[str, Any] = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
}


@dataclass(frozen=True, slots=True)
class Shape:
    """A kind of checkpoint: how its mini is built, and the configurations of the real one."""

    kind: str
    build: Callable[[Path], None]
    unet: Mapping[str, Any]
    vae: Mapping[str, Any]
    text_encoders: tuple[Mapping[str, Any], ...]


KINDS = {
    "sd15": Shape(
        kind="sd15",
        build=build_sd15,
        unet={"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8},
        vae={"sample_size": 512, "scaling_factor": 0.18215, **_VAE},
        text_encoders=(_CLIP_L,),
    ),
    "sdxl": Shape(
        kind="sdxl",
        build=build_sdxl,
        unet={
            "sample_size": 128,
            "cross_attention_dim": 2048,
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            "block_out_channels": (320, 640, 1280),
            "transformer_layers_per_block": (1, 2, 10),
            "attention_head_dim": (5, 10, 20),
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,
        },
        # The published one is not for float16; bf16 has float32's range, and no cast.
        vae={"sample_size": 1024, "scaling_factor": 0.13025, "force_upcast": False, **_VAE},
        text_encoders=(_CLIP_L, _CLIP_BIG_G),
    ),
}


def written(folder: Path, shape: Shape, device: torch.device, *, is_tiny: bool) -> Path:
    """Write a checkpoint of a shape to a new folder and return it; a tiny one keeps the mini's networks."""
    shape.build(folder)
    if is_tiny:
        return folder
    with device, torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        for part, model, config in (
            ("unet", UNet2DConditionModel, shape.unet),
            ("vae", AutoencoderKL, shape.vae),
        ):
            network = model(**config).to(torch.bfloat16)
            network.save_pretrained(folder / part, safe_serialization=True, max_shard_size="100GB")
        for number, config in enumerate(shape.text_encoders):
            _write_text_encoder(folder, number, config)
    return folder


def _write_text_encoder(folder: Path, number: int, config: Mapping[str, Any]) -> None:
    part, text_model = (("text_encoder", CLIPTextModel), ("text_encoder_2", CLIPTextModelWithProjection))[number]
    mini = CLIPTextConfig.from_pretrained(folder / part)
    kept = {name: getattr(mini, name) for name in ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")}
    network = text_model(CLIPTextConfig(max_position_embeddings=77, **kept, **config)).to(torch.bfloat16)
    write_text_encoder(folder / part, network, text_model.__name__)
