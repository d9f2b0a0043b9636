"""A base for stage 2 where there is none to download: a new UNet around a trained autoencoder and text encoder.

The folder is a whole checkpoint in SD1.5's layout, which stage 2 then trains like any other.
"""

import shutil
from pathlib import Path

import torch

from services.diffusion.libraries import AutoencoderKL, CLIPTextConfig, UNet2DConditionModel
from training.checkpoints import SCHEDULER, WEIGHTS, model_index
from training.recipes.stage2 import Fresh
from training.runs.records import write_json


def assemble(folder: Path, fresh: Fresh, *, seed: int) -> None:
    """Write the checkpoint to an empty or missing folder; it is complete or absent whenever this stops."""
    beside = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    shutil.copytree(fresh.vae, beside / "vae")
    for part in ("text_encoder", "tokenizer"):
        shutil.copytree(fresh.clip / part, beside / part)
    vae = AutoencoderKL.load_config(beside / "vae")
    text = CLIPTextConfig.from_pretrained(beside / "text_encoder")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet = UNet2DConditionModel(
            in_channels=vae["latent_channels"],
            out_channels=vae["latent_channels"],
            sample_size=vae["sample_size"] // 8,
            cross_attention_dim=text.hidden_size,
            **fresh.unet,
        )
    unet.save_pretrained(beside / "unet", safe_serialization=True)
    (beside / "scheduler").mkdir()
    scheduler = {**SCHEDULER, **fresh.scheduler}
    write_json(beside / "scheduler" / "scheduler_config.json", scheduler)
    write_json(
        beside / "model_index.json", model_index("sd15", inpainting=False, scheduler=str(scheduler["_class_name"]))
    )
    write_json(beside / "serving.json", fresh.serving)
    assert (beside / "unet" / WEIGHTS["unet"]).is_file()
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside.rename(folder)
