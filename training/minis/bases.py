"""Mini base checkpoints of every family in the layout of the public ones, and a mini CLIP tower: random weights.

A dry run reads these in place of Vicuna, Llama-3, Mistral, Qwen2, Phi-3 or Gemma: the same files, the same classes, the
same kind of tokenizer, with what is particular to the family (LLMGA.md §1.1), at a few hundred thousand parameters.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from services.mllm.torchvision_schemas import register
from training.minis.mllm import new_tower, write_tower
from training.minis.tokenizers import write_tokenizer

HIDDEN, LAYERS, HEADS = 64, 2, 4
_LLAMA = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "rms_norm_eps": 1e-5, "hidden_act": "silu"}
_ROPE_PAIRS = HIDDEN // HEADS // 2
_FAMILIES: dict[str, dict[str, Any]] = {
    "vicuna": {**_LLAMA, "num_key_value_heads": HEADS, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0},
    "llama3": {**_LLAMA, "num_key_value_heads": 2, "rope_theta": 500_000.0, "attention_bias": False},
    "mistral": {
        "model_type": "mistral",
        "architectures": ["MistralForCausalLM"],
        "hidden_act": "silu",
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1_000_000.0,
        "sliding_window": None,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    "qwen2": {
        "model_type": "qwen2",
        "architectures": ["Qwen2ForCausalLM"],
        "hidden_act": "silu",
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1_000_000.0,
        "tie_word_embeddings": True,
        "use_sliding_window": False,
        "sliding_window": None,
        "max_window_layers": LAYERS,
    },
    "phi3": {
        "model_type": "phi3",
        "architectures": ["Phi3ForCausalLM"],
        "hidden_act": "silu",
        "num_key_value_heads": HEADS,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10_000.0,
        "original_max_position_embeddings": 1_024,
        "rope_scaling": {
            "type": "longrope",
            "short_factor": [1.0 + 0.05 * n for n in range(_ROPE_PAIRS)],
            "long_factor": [2.0 + 0.5 * n for n in range(_ROPE_PAIRS)],
        },
        "sliding_window": None,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    },
    "gemma": {
        "model_type": "gemma",
        "architectures": ["GemmaForCausalLM"],
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_activation": "gelu_pytorch_tanh",
        "head_dim": 32,
        "num_key_value_heads": 1,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10_000.0,
        "tie_word_embeddings": True,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": 2,
    },
}
FAMILIES = tuple(_FAMILIES)
_SPARE_ROWS = {"qwen2": 37, "phi3": 53}  # embedding rows that no token uses, as the public ones have


def build_base(folder: Path, family: str, *, seed: int = 0) -> None:
    """Write a base checkpoint to an empty or missing folder; equal seeds give equal weights on one machine."""
    folder.mkdir(parents=True, exist_ok=True)
    tokens = write_tokenizer(folder, family)
    config = {
        "tie_word_embeddings": False,
        "hidden_size": HIDDEN,
        "intermediate_size": 3 * HIDDEN // 2,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "max_position_embeddings": 4_096,
        "vocab_size": tokens + _SPARE_ROWS.get(family, 0),
        "torch_dtype": "float32",
        **_FAMILIES[family],
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    register()
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    tensors = dict(model.state_dict())
    if config["tie_word_embeddings"]:
        del tensors["lm_head.weight"]
    stored = {name: tensor.contiguous().clone() for name, tensor in tensors.items()}
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})


def build_tower(folder: Path, *, seed: int = 0) -> None:
    """Write a CLIP tower to an empty or missing folder."""
    register()
    folder.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = new_tower()
    stored = {
        f"vision_model.{name.removeprefix('vision_model.')}": tensor.contiguous().clone()
        for name, tensor in model.state_dict().items()
    }
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    write_tower(folder, model.config)
