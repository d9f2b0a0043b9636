"""Mini checkpoints in the diffusers layouts of SD1.5 and SDXL: random weights, 5 M parameters, 128x128 pixels.

Every part is the architecture of the real one, smaller: a cross-attention UNet, an autoencoder with factor 8, CLIP text
encoders with 77 positions and byte-level BPE tokenizers, and the published scheduler configuration.
The weights are float32 safetensors under the key names of the published files. `serving.json` holds the
defaults that a worker announces for this checkpoint (a model of this size has no use for 50 steps).
"""

import json
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from services.diffusion.libraries import (
    AutoencoderKL,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    UNet2DConditionModel,
)
from training.minis.requests import text

MERGES = 1_024  # word pieces learned from our text; the bytes and the two special tokens come on top
BEGIN, END = "<|startoftext|>", "<|endoftext|>"
END_OF_WORD = "</w>"
HIDDEN = 96
SECOND_HIDDEN, POOLED, SIZE_CHANNELS = 64, 48, 16  # SDXL's second text encoder, its vector, one size's embedding
SAMPLE_SIZE = 16  # latents; pixels are eight times as many
SERVING = {"num_inference_steps": 20, "guidance_scale": 7.5}


def build_sd15(folder: Path, *, seed: int = 0) -> None:
    """Write a checkpoint to an empty or missing folder; equal seeds give equal weights on one machine."""
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = _write_tokenizer(folder / "tokenizer")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet, vae, text_encoder = _unet(), _vae(), _text_encoder(vocabulary)
    unet.save_pretrained(folder / "unet", safe_serialization=True)
    vae.save_pretrained(folder / "vae", safe_serialization=True)
    _write_text_encoder(folder / "text_encoder", text_encoder, "CLIPTextModel")
    (folder / "scheduler").mkdir(exist_ok=True)
    _write_json(folder / "scheduler" / "scheduler_config.json", _SCHEDULER)
    _write_json(folder / "model_index.json", _model_index(is_sdxl=False))
    _write_json(folder / "serving.json", SERVING)


def build_sdxl(folder: Path, *, seed: int = 0) -> None:
    """Write an SDXL checkpoint: two text encoders, the second with `!` as padding, and sizes as a condition."""
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = _write_tokenizer(folder / "tokenizer")
    _write_tokenizer(folder / "tokenizer_2", pad="!")
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
    _write_text_encoder(folder / "text_encoder", first, "CLIPTextModel")
    _write_text_encoder(folder / "text_encoder_2", second, "CLIPTextModelWithProjection")
    (folder / "scheduler").mkdir(exist_ok=True)
    _write_json(folder / "scheduler" / "scheduler_config.json", _SDXL_SCHEDULER)
    _write_json(folder / "model_index.json", _model_index(is_sdxl=True))
    _write_json(folder / "serving.json", {**SERVING, "guidance_scale": 5.0})


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


def _write_text_encoder(folder: Path, text_encoder: Any, architecture: str) -> None:
    text_encoder.config.architectures = [architecture]
    text_encoder.config.save_pretrained(folder)
    prefix = "text_model."  # in the published files; transformers 5 writes the names without it, and reads both
    tensors = {
        name if name.startswith("text_projection") else prefix + name.removeprefix(prefix): tensor.contiguous()
        for name, tensor in text_encoder.state_dict().items()
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


_SCHEDULER: dict[str, Any] = {  # as published with SD1.5
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
_SDXL_SCHEDULER: dict[str, Any] = {  # as published with SDXL
    **_SCHEDULER,
    "_class_name": "EulerDiscreteScheduler",
    "_diffusers_version": "0.19.0.dev0",
    "interpolation_type": "linear",
    "prediction_type": "epsilon",
    "sample_max_value": 1.0,
    "timestep_spacing": "leading",
    "use_karras_sigmas": False,
}


def _model_index(*, is_sdxl: bool) -> dict[str, Any]:
    index: dict[str, Any] = {
        "_class_name": "StableDiffusionXLPipeline" if is_sdxl else "StableDiffusionPipeline",
        "_diffusers_version": "0.42.1",
        "feature_extractor": [None, None],
        "scheduler": ["diffusers", "EulerDiscreteScheduler" if is_sdxl else "PNDMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    if is_sdxl:
        return index | {
            "force_zeros_for_empty_prompt": True,
            "image_encoder": [None, None],
            "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
            "tokenizer_2": ["transformers", "CLIPTokenizer"],
        }
    return index | {"requires_safety_checker": False, "safety_checker": [None, None]}


def _write_tokenizer(folder: Path, *, pad: str = END) -> dict[str, int]:
    """Write a CLIP tokenizer learned from our own text; return its vocabulary in CLIP's order."""
    merges = _learn_merges(text(), MERGES)
    alphabet = sorted(_bytes_to_unicode().values())
    pieces = [*alphabet, *(byte + END_OF_WORD for byte in alphabet), *(a + b for a, b in merges), BEGIN, END]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    folder.mkdir(exist_ok=True)
    _write_json(folder / "vocab.json", vocabulary)
    lines = ["#version: 0.2", *(f"{a} {b}" for a, b in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    special = {"bos_token": BEGIN, "eos_token": END, "pad_token": pad, "unk_token": END}
    _write_json(folder / "special_tokens_map.json", special)
    _write_json(
        folder / "tokenizer_config.json",
        {
            **special,
            "add_prefix_space": False,
            "do_lower_case": True,
            "errors": "replace",
            "model_max_length": 77,
            "tokenizer_class": "CLIPTokenizer",
        },
    )
    return vocabulary


def _learn_merges(lines: Iterable[str], count: int) -> list[tuple[str, str]]:
    """Return the byte-pair merges of this text (Sennrich et al. 2016, Alg. 1), most frequent first."""
    splitter = CLIPTokenizer().backend_tokenizer  # the rules of CLIP: lower case, words, single digits
    words: Counter[tuple[str, ...]] = Counter()
    for line in lines:
        normal = splitter.normalizer.normalize_str(line)
        for word, _ in splitter.pre_tokenizer.pre_tokenize_str(normal):
            words[(*word[:-1], word[-1] + END_OF_WORD)] += 1
    merges: list[tuple[str, str]] = []
    while len(merges) < count:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, times in words.items():
            for pair in pairwise(word):
                pairs[pair] += times
        if not pairs:
            break
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(best)
        words = Counter({_merge(word, best): times for word, times in words.items()})
    return merges


def _merge(word: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    merged: list[str] = []
    for piece in word:
        if merged and (merged[-1], piece) == pair:
            merged[-1] += piece
        else:
            merged.append(piece)
    return tuple(merged)


def _bytes_to_unicode() -> dict[int, str]:
    """Return the printable stand-in of each byte, as GPT-2 and CLIP have it."""
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    table = {byte: chr(byte) for byte in printable}
    for byte in range(256):
        if byte not in table:
            table[byte] = chr(256 + len(table) - len(printable))
    return table


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
