"""Tiny checkpoints in the published layout for each family, made from LLMGA.md §1 and not from the
converter."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file


@dataclass(frozen=True)
class Sizes:
    """Of a checkpoint; `head` is the width of an attention head, side and patch are in pixels."""

    hidden: int = 32
    inner: int = 48
    layers: int = 2
    heads: int = 4
    kv_heads: int = 2
    head: int = 8
    tower_hidden: int = 16
    tower_inner: int = 24
    tower_layers: int = 3
    patch: int = 14
    side: int = 28


SMALL = Sizes()
HIDDEN, SIDE = SMALL.hidden, SMALL.side
TOWER = "model.vision_tower.vision_tower.vision_model."

MODEL_TYPES = {
    "vicuna": "llava_llama",
    "llama3": "llava_llama",
    "llama2": "llava_llama",
    "mistral": "llava_mistral",
    "qwen2": "llava_Qwen2",
    "phi3": "llava_Phi3",
    "gemma": "llava_gemma",
}
TIED = {"qwen2", "gemma"}
SPECIAL = {
    "vicuna": ["<unk>", "<s>", "</s>"],
    "llama2": ["<unk>", "<s>", "</s>"],
    "mistral": ["<unk>", "<s>", "</s>"],
    "llama3": [
        "<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>", "<|reserved_special_token_1|>",
        "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>",
    ],
    "qwen2": ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
    "phi3": ["<unk>", "<s>", "</s>", "<|endoftext|>", "<|assistant|>", "<|placeholder1|>", "<|end|>", "<|user|>"],
    "gemma": ["<pad>", "<eos>", "<bos>", "<unk>", "<unused0>", "<start_of_turn>", "<end_of_turn>"],
}  # fmt: skip


def tensors_of(family: str, rows: int, sizes: Sizes = SMALL) -> dict[str, tuple[int, ...]]:
    """Return the published names and shapes."""
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (rows, sizes.hidden),
        "model.norm.weight": (sizes.hidden,),
        "model.mm_projector.0.weight": (sizes.hidden, sizes.tower_hidden),
        "model.mm_projector.0.bias": (sizes.hidden,),
        "model.mm_projector.2.weight": (sizes.hidden, sizes.hidden),
        "model.mm_projector.2.bias": (sizes.hidden,),
    }
    if family not in TIED:
        shapes["lm_head.weight"] = (rows, sizes.hidden)
    for index in range(sizes.layers):
        layer = f"model.layers.{index}."
        shapes[layer + "input_layernorm.weight"] = shapes[layer + "post_attention_layernorm.weight"] = (sizes.hidden,)
        shapes[layer + "self_attn.o_proj.weight"] = (sizes.hidden, sizes.heads * sizes.head)
        shapes[layer + "mlp.down_proj.weight"] = (sizes.hidden, sizes.inner)
        if family == "phi3":
            shapes[layer + "self_attn.qkv_proj.weight"] = (
                (sizes.heads + 2 * sizes.kv_heads) * sizes.head,
                sizes.hidden,
            )
            shapes[layer + "mlp.gate_up_proj.weight"] = (2 * sizes.inner, sizes.hidden)
            continue
        shapes[layer + "mlp.gate_proj.weight"] = shapes[layer + "mlp.up_proj.weight"] = (sizes.inner, sizes.hidden)
        for name, heads in (("q", sizes.heads), ("k", sizes.kv_heads), ("v", sizes.kv_heads)):
            shapes[layer + f"self_attn.{name}_proj.weight"] = (heads * sizes.head, sizes.hidden)
            if family == "qwen2":
                shapes[layer + f"self_attn.{name}_proj.bias"] = (heads * sizes.head,)
    positions = (sizes.side // sizes.patch) ** 2 + 1
    shapes |= {
        TOWER + "embeddings.class_embedding": (sizes.tower_hidden,),
        TOWER + "embeddings.patch_embedding.weight": (sizes.tower_hidden, 3, sizes.patch, sizes.patch),
        TOWER + "embeddings.position_embedding.weight": (positions, sizes.tower_hidden),
    }
    for index in range(sizes.tower_layers):
        layer = f"{TOWER}encoder.layers.{index}."
        for name in ("q", "k", "v", "out"):
            shapes[layer + f"self_attn.{name}_proj.weight"] = (sizes.tower_hidden, sizes.tower_hidden)
            shapes[layer + f"self_attn.{name}_proj.bias"] = (sizes.tower_hidden,)
        shapes[layer + "mlp.fc1.weight"] = (sizes.tower_inner, sizes.tower_hidden)
        shapes[layer + "mlp.fc1.bias"] = (sizes.tower_inner,)
        shapes[layer + "mlp.fc2.weight"] = (sizes.tower_hidden, sizes.tower_inner)
        shapes[layer + "mlp.fc2.bias"] = (sizes.tower_hidden,)
        for name in ("layer_norm1", "layer_norm2"):
            shapes[layer + name + ".weight"] = shapes[layer + name + ".bias"] = (sizes.tower_hidden,)
    for name in ("pre_layrnorm", "post_layernorm"):
        shapes[TOWER + name + ".weight"] = shapes[TOWER + name + ".bias"] = (sizes.tower_hidden,)
    return shapes


def write_weights(folder: Path, tensors: dict[str, np.ndarray[Any, np.dtype[Any]]], *, shards: int = 1) -> None:
    """Write tensors as one file or as several with an index."""
    names = sorted(tensors)
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return
    weight_map: dict[str, str] = {}
    for number in range(shards):
        file = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        part = {name: tensors[name] for name in names[number::shards]}
        save_file(part, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": weight_map})


def write_config(folder: Path, family: str, rows: int, sizes: Sizes = SMALL, **values: Any) -> None:
    """Write config.json with the keys of LLMGA.md §1.2, and the tower's; `values` come on top."""
    write_json(
        folder / "config.json",
        {
            "architectures": ["LlavaForCausalLM"],
            "hidden_act": "silu",
            "hidden_size": sizes.hidden,
            "intermediate_size": sizes.inner,
            "max_position_embeddings": 2_048,
            "mm_hidden_size": sizes.tower_hidden,
            "mm_projector_type": "mlp2x_gelu",
            "mm_use_im_patch_token": False,
            "mm_use_im_start_end": False,
            "mm_vision_select_feature": "patch",
            "mm_vision_select_layer": -2,
            "mm_vision_tower": "tower",
            "model_type": MODEL_TYPES[family],
            "num_attention_heads": sizes.heads,
            "num_hidden_layers": sizes.layers,
            "num_key_value_heads": sizes.kv_heads,
            "rms_norm_eps": 1e-6,
            "tie_word_embeddings": family in TIED,
            "tokenizer_model_max_length": 2_048,
            "torch_dtype": "float16",
            "use_mm_proj": True,
            "vocab_size": rows,
            **values,
        },
    )
    write_json(
        folder / "tower" / "config.json",
        {
            "hidden_size": sizes.tower_hidden,
            "image_size": sizes.side,
            "intermediate_size": sizes.tower_inner,
            "num_attention_heads": 2,
            "num_hidden_layers": sizes.tower_layers,
            "patch_size": sizes.patch,
        },
    )


def write_published(folder: Path, family: str = "qwen2", *, shards: int = 1) -> Path:
    """Write a checkpoint of random float16 weights; return its folder."""
    folder.mkdir(parents=True)
    tokens = SPECIAL[family] + [chr(97 + index) for index in range(26)]
    rows = len(tokens) + (5 if family in {"qwen2", "phi3"} else 0)
    rng = np.random.default_rng(0)
    tensors = {name: rng.standard_normal(shape).astype(np.float16) for name, shape in tensors_of(family, rows).items()}
    write_weights(folder, tensors, shards=shards)
    write_config(folder, family, rows)
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    added = [{"id": index, "content": token, **flags} for index, token in enumerate(SPECIAL[family])]
    write_json(
        folder / "tokenizer.json",
        {"added_tokens": added, "model": {"type": "BPE", "vocab": {t: i for i, t in enumerate(tokens)}, "merges": []}},
    )
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "Qwen2Tokenizer"})
    write_json(folder / "generation_config.json", {"eos_token_id": 1, "top_k": 20})
    return folder


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write a JSON file."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def change_json(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a JSON file in place."""
    value = json.loads(path.read_text())
    change(value)
    write_json(path, value)


def read_tensors(folder: Path) -> dict[str, np.ndarray[Any, np.dtype[Any]]]:
    """Return all tensors of a folder's safetensors files."""
    tensors: dict[str, np.ndarray[Any, np.dtype[Any]]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="numpy") as file:
            tensors |= {name: file.get_tensor(name) for name in file.keys()}
    return tensors


def rewrite_tensors(path: Path, change: Callable[[dict[str, np.ndarray[Any, np.dtype[Any]]]], object]) -> None:
    """Change the tensors of one file in place."""
    with safe_open(path, framework="numpy") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})
