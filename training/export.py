"""What training leaves: a checkpoint in the published LLMGA layout (LLMGA.md §1.2, §1.6), which serving takes as it is.

The base's own files are the pattern: its configuration with LLaVA's keys on top, its tokenizer and its sampling
defaults unchanged, its rows for tokens that do not exist. The tower's weights go in as they were, its configuration
beside them unless it is CLIP ViT-L/14 at 336 px.
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from services.mllm.checkpoints.published import SERVING
from services.mllm.checkpoints.towers import CLIP_L_336
from services.mllm.checkpoints.vocabularies import TOKENIZER_FILES
from services.mllm.conversation import TEMPLATES
from training.data.tokens import MODEL_TYPES
from training.runs.records import write_json

CLIP_L_336_NAME = "openai/clip-vit-large-patch14-336"
SHARD_BYTES = 5_000_000_000
CLASSES = {
    "llava_llama": "LlavaLlamaForCausalLM",
    "llava_mistral": "LlavaMistralForCausalLM",
    "llava_Qwen2": "LlavaQwen2ForCausalLM",
    "llava_Phi3": "LlavaPhi3ForCausalLM",
    "llava_gemma": "LlavaGemmaForCausalLM",
}
_TOWER = "model.vision_tower.vision_tower.vision_model."
_TOWER_FILES = ("config.json", "preprocessor_config.json")


def export_projector(path: Path, projector: Mapping[str, torch.Tensor]) -> None:
    """Write a projector under its published names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(
        {f"model.mm_projector.{name}": _stored(tensor, torch.float32) for name, tensor in projector.items()}, path
    )


def export_published(
    folder: Path,
    *,
    family: str,
    base: Path,
    tower: Path,
    language_model: Mapping[str, torch.Tensor] | None,
    changes: Mapping[str, torch.Tensor],
    projector: Mapping[str, torch.Tensor],
    tells_changes: bool = False,
    dtype: torch.dtype = torch.bfloat16,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write a checkpoint to a folder, which is replaced if it is there.

    language_model: its tensors by name, or None for those of the base. changes: what an adapter adds to them.
    tells_changes: see `services.mllm.checkpoints.published.SERVING`.
    """
    beside = folder.with_name(f".{folder.name}.writing")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    config = _read(base / "config.json")
    tower_config = _read(tower / "config.json")
    tower_config = tower_config.get("vision_config", tower_config)
    is_known = all(tower_config.get(name, value) == value for name, value in CLIP_L_336.items())
    tower_name = CLIP_L_336_NAME if is_known else tower.name
    write_json(beside / "config.json", _config(config, family, tower_name, tower_config["hidden_size"], dtype))
    if not is_known:
        (beside / tower_name).mkdir()
        for name in _TOWER_FILES:
            shutil.copyfile(tower / name, beside / tower_name / name)
    for name in TOKENIZER_FILES:
        if (base / name).is_file():
            shutil.copyfile(base / name, beside / name)
    _write_generation_config(beside, base, family)
    if tells_changes:
        write_json(beside / SERVING, {"tells_changes": True})
    tied = bool(config.get("tie_word_embeddings", family == "gemma"))
    source = _language_model(base) if language_model is None else iter(language_model.items())

    def tensors() -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in source:
            if name.endswith((".inv_freq", ".position_ids")) or (tied and name == "lm_head.weight"):
                continue
            yield name, tensor.float() + changes[name].to(tensor.device) if name in changes else tensor
        for name, tensor in projector.items():
            yield f"model.mm_projector.{name}", tensor
        for name, tensor in _stored_tensors(tower):
            if name.startswith(("text_model.", "text_projection", "visual_projection", "logit_scale")):
                continue
            bare = name.removeprefix("vision_model.")
            if not bare.endswith("position_ids"):
                yield _TOWER + bare, tensor

    _write_shards(beside, tensors(), dtype, shard_bytes)
    shutil.rmtree(folder, ignore_errors=True)
    beside.rename(folder)


def _config(base: dict[str, Any], family: str, tower: str, tower_hidden: int, dtype: torch.dtype) -> dict[str, Any]:
    model_type = MODEL_TYPES[family]
    config = {name: value for name, value in base.items() if name not in ("_name_or_path", "dtype", "auto_map")}
    return config | {
        "architectures": [CLASSES[model_type]],
        "freeze_mm_mlp_adapter": False,
        "image_aspect_ratio": "resizesquare",
        "mm_hidden_size": tower_hidden,
        "mm_patch_merge_type": "flat",
        "mm_projector_lr": None,
        "mm_projector_type": "mlp2x_gelu",
        "mm_use_im_patch_token": False,
        "mm_use_im_start_end": False,
        "mm_vision_select_feature": "patch",
        "mm_vision_select_layer": -2,
        "mm_vision_tower": tower,
        "model_type": model_type,
        "tokenizer_model_max_length": 2_048,
        "tokenizer_padding_side": "right",
        "torch_dtype": str(dtype).removeprefix("torch."),
        "tune_mm_mlp_adapter": False,
        "use_cache": True,
        "use_mm_proj": True,
    }


def _write_generation_config(folder: Path, base: Path, family: str) -> None:
    """Copy the base's sampling defaults; a base without any gets the stop tokens of its family."""
    if (base / "generation_config.json").is_file():
        shutil.copyfile(base / "generation_config.json", folder / "generation_config.json")
        return
    from services.mllm.checkpoints.families import ARCHITECTURES
    from services.mllm.checkpoints.vocabularies import open_vocabulary

    tokens = open_vocabulary(base, ARCHITECTURES[MODEL_TYPES[family]]).tokens
    stop = [tokens[token] for token in TEMPLATES[family].stop if token in tokens]
    write_json(folder / "generation_config.json", {"eos_token_id": stop, "do_sample": True, "temperature": 0.2})


def _language_model(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the language model's tensors of a base, which may be a published LLMGA checkpoint."""
    for name, tensor in _stored_tensors(folder):
        if not name.startswith(("model.mm_projector.", _TOWER)):
            yield name, tensor


def _stored_tensors(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():
                yield name, file.get_tensor(name)


def _stored(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return tensor.detach().to("cpu", dtype).contiguous().clone()


def _write_shards(folder: Path, tensors: Iterator[tuple[str, torch.Tensor]], dtype: torch.dtype, limit: int) -> None:
    """Write tensors one shard at a time: no more than one is held."""
    shards: list[list[str]] = []
    held: dict[str, torch.Tensor] = {}
    held_bytes = all_bytes = 0

    def flush() -> None:
        nonlocal held, held_bytes
        save_file(held, folder / f"model-{len(shards) + 1:05d}.safetensors", metadata={"format": "pt"})
        shards.append(list(held))
        held, held_bytes = {}, 0

    for name, tensor in tensors:
        stored = _stored(tensor, dtype)
        if held and held_bytes + stored.nbytes > limit:
            flush()
        held[name] = stored
        held_bytes, all_bytes = held_bytes + stored.nbytes, all_bytes + stored.nbytes
    flush()
    if len(shards) == 1:
        (folder / "model-00001.safetensors").rename(folder / "model.safetensors")
        return
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        (folder / f"model-{number:05d}.safetensors").rename(folder / file)
        weight_map |= dict.fromkeys(names, file)
    write_json(
        folder / "model.safetensors.index.json", {"metadata": {"total_size": all_bytes}, "weight_map": weight_map}
    )


def _read(path: Path) -> dict[str, Any]:
    found = json.loads(path.read_text(encoding="utf-8"))
    assert isinstance(found, dict)
    return found
