"""Random LoRA adapters for the mini checkpoints, saved by diffusers as a trainer saves them."""

from pathlib import Path
from typing import Any

import torch

from services.diffusion.libraries import (
    CLIPTextModel,
    CLIPTextModelWithProjection,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)

_UNET = ["to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "conv1"]  # proj_* of SD1.5 are convolutions
_TEXT = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1"]


def write_lora(checkpoint: Path, folder: Path, *, seed: int, is_sdxl: bool = False, text: bool = True) -> Path:
    """Write an adapter that changes pictures visibly; return its file."""
    from peft import LoraConfig, get_peft_model_state_dict  # behind our door to the libraries that it imports

    parts: dict[str, Any] = {"unet": UNet2DConditionModel.from_pretrained(checkpoint / "unet")}
    if text:
        parts["text_encoder"] = CLIPTextModel.from_pretrained(checkpoint / "text_encoder")
        if is_sdxl:
            parts["text_encoder_2"] = CLIPTextModelWithProjection.from_pretrained(checkpoint / "text_encoder_2")
    saved: dict[str, Any] = {}
    for name, part in parts.items():
        config = LoraConfig(
            r=2 + seed, lora_alpha=3, target_modules=_UNET if name == "unet" else _TEXT, init_lora_weights=False
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            part.add_adapter(config)
        weights = get_peft_model_state_dict(part)
        saved[f"{name}_lora_layers"] = weights
        saved[f"{name}_lora_adapter_metadata"] = config.to_dict()
    pipeline = StableDiffusionXLPipeline if is_sdxl else StableDiffusionPipeline
    pipeline.save_lora_weights(folder, safe_serialization=True, **saved)
    return folder / "pytorch_lora_weights.safetensors"
