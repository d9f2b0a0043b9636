"""Mini checkpoints in the diffusers layouts of SD1.5 and SDXL: random weights, 5 M parameters, 128x128 pixels.

Every part is the architecture of the real one, smaller: a cross-attention UNet, an autoencoder with factor 8, CLIP text
encoders with 77 positions and byte-level BPE tokenizers, and the published scheduler configuration.
The weights are float32 safetensors under the key names of the published files. `serving.json` holds the
defaults that a worker announces for this checkpoint (a model of this size has no use for 50 steps).
"""

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
from training.bases.tokenizer import BEGIN, END, write_tokenizer
from training.checkpoints import SCHEDULER, model_index
from training.minis.requests import text
from training.runs.records import write_json

MERGES = 1_024  # word pieces learned from our text; the bytes and the two special tokens come on top
HIDDEN = 96
SECOND_HIDDEN, POOLED, SIZE_CHANNELS = 64, 48, 16  # SDXL's second text encoder, its vector, one size's embedding
SAMPLE_SIZE = 16  # latents; pixels are eight times as many
SERVING = {"num_inference_steps": 20, "guidance_scale": 7.5}


def build_sd15(folder: Path, *, seed: int = 0) -> None:
    """Write a checkpoint to an empty or missing folder; equal seeds give equal weights on one machine."""
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = write_tokenizer(folder / "tokenizer", text(), MERGES)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet, vae, text_encoder = _unet(), _vae(), _text_encoder(vocabulary)
    unet.save_pretrained(folder / "unet", safe_serialization=True)
    vae.save_pretrained(folder / "vae", safe_serialization=True)
    write_text_encoder(folder / "text_encoder", text_encoder, "CLIPTextModel")
    (folder / "scheduler").mkdir(exist_ok=True)
    write_json(folder / "scheduler" / "scheduler_config.json", dict(SCHEDULER))
    write_json(folder / "model_index.json", model_index("sd15", inpainting=False, scheduler="PNDMScheduler"))
    write_json(folder / "serving.json", SERVING)


def build_sdxl(folder: Path, *, seed: int = 0) -> None:
    """Write an SDXL checkpoint: two text encoders, the second with `!` as padding, and sizes as a condition."""
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = write_tokenizer(folder / "tokenizer", text(), MERGES)
    write_tokenizer(folder / "tokenizer_2", text(), MERGES, pad="!")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet = _unet(
            addition_embed_type="text_time",
            addition_time_embed_dim=SIZE_CHANNELS,
            projection_class_embeddings_input_dim=POOLED + 6 * SIZE_CHANNELS,
            cross_attention_dim=HIDDEN + SECOND_HIDDEN,
            use_linear_projection=True,
        )
        vae = _vae(scaling_factor=0.13025, force_upcast=True)
        first = _text_encoder(vocabulary)
        # As published: the end of a text is the highest id, which the legacy end token 2 stands for.
        second = _text_encoder(
            vocabulary,
            CLIPTextModelWithProjection,
            hidden_size=SECOND_HIDDEN,
            hidden_act="gelu",
            projection_dim=POOLED,
            eos_token_id=2,
            pad_token_id=1,
        )
    unet.save_pretrained(folder / "unet", safe_serialization=True)
    vae.save_pretrained(folder / "vae", safe_serialization=True)
    write_text_encoder(folder / "text_encoder", first, "CLIPTextModel")
    write_text_encoder(folder / "text_encoder_2", second, "CLIPTextModelWithProjection")
    (folder / "scheduler").mkdir(exist_ok=True)
    write_json(folder / "scheduler" / "scheduler_config.json", _SDXL_SCHEDULER)
    write_json(folder / "model_index.json", model_index("sdxl", inpainting=False, scheduler="EulerDiscreteScheduler"))
    write_json(folder / "serving.json", {**SERVING, "guidance_scale": 5.0})


def _unet(**options: Any) -> Any:
    settings: dict[str, Any] = {"cross_attention_dim": HIDDEN, **options}
    return UNet2DConditionModel(
        sample_size=SAMPLE_SIZE,
        in_channels=4,
        out_channels=4,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(32, 64, 128),
        layers_per_block=2,
        attention_head_dim=4,
        norm_num_groups=16,
        **settings,
    ).eval()


def _vae(**options: Any) -> Any:
    settings: dict[str, Any] = {"scaling_factor": 0.18215, "force_upcast": False, **options}
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 48, 64),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=16,
        sample_size=8 * SAMPLE_SIZE,
        **settings,
    ).eval()


def _text_encoder(vocabulary: dict[str, int], model: Any = CLIPTextModel, **options: Any) -> Any:
    settings: dict[str, Any] = {
        "hidden_size": HIDDEN,
        "hidden_act": "quick_gelu",
        "projection_dim": HIDDEN,
        "eos_token_id": vocabulary[END],
        "pad_token_id": vocabulary[END],
        **options,
    }
    config = CLIPTextConfig(
        vocab_size=len(vocabulary),
        intermediate_size=4 * settings["hidden_size"],
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=77,
        bos_token_id=vocabulary[BEGIN],
        initializer_factor=4.0,  # wide enough that the pictures of two prompts differ
        **settings,
    )
    text_encoder = model(config).eval()
    # A fresh layer norm makes every token's mean zero, but weighted prompts are rescaled by their mean.
    norm = getattr(text_encoder, "text_model", text_encoder).final_layer_norm
    torch.nn.init.normal_(norm.weight, mean=1.0, std=0.2)
    torch.nn.init.normal_(norm.bias, mean=0.1, std=0.2)
    return text_encoder


_SDXL_SCHEDULER: dict[str, Any] = {  # as published with SDXL
    **SCHEDULER,
    "_class_name": "EulerDiscreteScheduler",
    "_diffusers_version": "0.19.0.dev0",
    "interpolation_type": "linear",
    "prediction_type": "epsilon",
    "sample_max_value": 1.0,
    "timestep_spacing": "leading",
    "use_karras_sigmas": False,
}
