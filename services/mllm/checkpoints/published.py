"""The published LLMGA layout (LLMGA.md §1), read with suspicion: everything is checked before a byte is
converted.

The tensors' names and shapes must be exactly those that the configuration asks for.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from services.mllm.checkpoints.errors import DOWNLOAD_AGAIN, USE_SAFETENSORS, CheckpointError
from services.mllm.checkpoints.families import (
    ARCHITECTURES,
    SEE_PUBLISHED,
    Architecture,
    family_of,
    integer,
    language_model_shapes,
)
from services.mllm.checkpoints.files import read_json, refuse_hostile
from services.mllm.checkpoints.tensors import FLOATS, Tensor, read_header
from services.mllm.checkpoints.towers import Tower, find_tower, read_tower
from services.mllm.checkpoints.vocabularies import TOKENIZER_FILES, Vocabulary, open_vocabulary

# What a checkpoint says of its training that serving must know and the published layout has no place for; it need not
# be there. `{"tells_changes": true}`: asked for a change, the model says in words what changes, before the prompt.
SERVING = "serving.json"
MAX_SPARE_ROWS = 4_096  # Qwen2 has up to 418 rows without a token; more is another model's tokenizer

TOWER_PREFIX = "model.vision_tower.vision_tower.vision_model."
PROJECTOR_PREFIX = "model.mm_projector."
_DROPPED = {
    ".inv_freq": "a buffer that is computed",
    ".position_ids": "a buffer that is computed",
    "model.image_newline": "used by another way of merging pictures",
}


@dataclass(frozen=True)
class Published:
    """A checkpoint whose every tensor is known and right.

    tells_changes: see `SERVING`.
    """

    folder: Path
    name: str
    config: dict[str, Any]
    architecture: Architecture
    family: str
    tower: Tower
    tensors: dict[str, Tensor]
    dropped: dict[str, str]
    vocabulary: Vocabulary
    files: list[Path] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    tells_changes: bool = False


def open_published(folder: Path, *, name: str | None = None, tower_folder: Path | None = None) -> Published:
    """Read and check a checkpoint folder. `name` is its published name where the folder's own says nothing;
    `tower_folder` holds a CLIP model whose tower takes the place of the checkpoint's copy.

    Raises:
        CheckpointError: it is not a sound LLMGA checkpoint.
    """
    if not folder.is_dir():
        raise CheckpointError(folder, "there is no such folder", "Check the path in LLMGA_MLLM__MODEL.")
    ignored = refuse_hostile(folder)
    path = folder / "config.json"
    config = read_json(path)
    model_type = config.get("model_type")
    architecture = ARCHITECTURES.get(model_type) if isinstance(model_type, str) else None
    if architecture is None or not isinstance(model_type, str):
        raise CheckpointError(
            path,
            f"model_type {str(model_type)[:40]!r} is none of LLMGA's",
            f"Known: {', '.join(ARCHITECTURES)}.",
        )
    _check_multimodal(path, config)
    given: dict[str, Tensor] = {}
    if tower_folder is None:
        tower = find_tower(folder, str(config["mm_vision_tower"]))
    else:
        tower, given = read_tower(tower_folder)
    vocabulary = open_vocabulary(folder, architecture)
    tokens = vocabulary.tokens
    name = name or folder.resolve().name
    shards = _shards(folder)
    tensors: dict[str, Tensor] = {}
    for shard in shards:
        for tensor in read_header(shard).values():
            if tensor.name in tensors:
                raise CheckpointError(shard, f"tensor {tensor.name!r} is in another file too", DOWNLOAD_AGAIN)
            tensors[tensor.name] = tensor
    _check_index(folder, tensors)
    expected = language_model_shapes(path, architecture, config)
    expected |= _projector_shapes(path, config, tower)
    replaced = {key: "another tower takes its place" for key in tensors if given and key.startswith(TOWER_PREFIX)}
    if given:
        tensors = {key: tensor for key, tensor in tensors.items() if key not in replaced}
    else:
        expected |= {TOWER_PREFIX + key: shape for key, shape in tower.shapes().items()}
    dropped = _account(folder, expected, tensors, is_tied="lm_head.weight" not in expected)
    tensors |= {TOWER_PREFIX + key: replace(tensor, name=TOWER_PREFIX + key) for key, tensor in given.items()}
    rows = integer(path, config, "vocab_size")
    if max(tokens.values()) >= rows:
        raise CheckpointError(
            vocabulary.path,
            f"it has ids up to {max(tokens.values())}, the model only {rows} rows",
            SEE_PUBLISHED,
        )
    if rows - len(set(tokens.values())) > MAX_SPARE_ROWS:
        raise CheckpointError(
            vocabulary.path,
            f"it has {len(set(tokens.values()))} tokens, the model {rows} rows",
            SEE_PUBLISHED,
        )
    extra = [folder / file for file in (*TOKENIZER_FILES, "generation_config.json", SERVING)]
    small = [path, *(file for file in extra if file.is_file())]
    for file in small:
        if file.suffix == ".json":
            read_json(file)
    if tower.origin.endswith("/config.json"):
        small.append(folder / tower.origin)
    if tower_folder is not None:
        shards += [tower_folder / "config.json", tower_folder / "model.safetensors"]
    return Published(
        folder=folder,
        name=name,
        config=config,
        architecture=architecture,
        family=family_of(model_type, tokens, name),
        tower=tower,
        tensors={key: tensor for key, tensor in tensors.items() if key not in dropped},
        dropped=dropped | replaced,
        vocabulary=vocabulary,
        files=[*small, *shards],
        ignored=ignored,
        tells_changes=_tells_changes(folder / SERVING),
    )


def _tells_changes(path: Path) -> bool:
    found = read_json(path) if path.is_file() else {}
    tells = found.pop("tells_changes", False)
    if found or not isinstance(tells, bool):
        raise CheckpointError(path, "it says more than `tells_changes`, true or false", "Remove what is not known.")
    return tells


def _check_multimodal(path: Path, config: Mapping[str, Any]) -> None:
    """Refuse variants of LLaVA that LLMGA never had (LLMGA.md §1.2)."""
    expected = {
        "mm_projector_type": ("mlp2x_gelu", None),
        "mm_vision_select_layer": (-2, None),
        "mm_vision_select_feature": ("patch", "patch"),
        "mm_patch_merge_type": ("flat", "flat"),
        "mm_use_im_start_end": (False, False),
        "mm_use_im_patch_token": (False, False),
    }
    for name, (value, default) in expected.items():
        found = config.get(name, default)
        if found != value:
            raise CheckpointError(path, f"{name} is {str(found)[:40]!r} and not {value!r}", SEE_PUBLISHED)
    if not isinstance(config.get("mm_vision_tower"), str):
        raise CheckpointError(path, "mm_vision_tower is missing: this is no multimodal checkpoint", SEE_PUBLISHED)


def _projector_shapes(path: Path, config: Mapping[str, Any], tower: Tower) -> dict[str, tuple[int, ...]]:
    hidden, inner = integer(path, config, "hidden_size"), integer(path, config, "mm_hidden_size")
    if inner != tower.config["hidden_size"]:
        raise CheckpointError(
            path,
            f"mm_hidden_size is {inner}, the tower ({tower.origin}) has {tower.config['hidden_size']}",
            "Put the tower's config.json into a folder inside the checkpoint that mm_vision_tower names.",
        )
    return {
        f"{PROJECTOR_PREFIX}0.weight": (hidden, inner),
        f"{PROJECTOR_PREFIX}0.bias": (hidden,),
        f"{PROJECTOR_PREFIX}2.weight": (hidden, hidden),
        f"{PROJECTOR_PREFIX}2.bias": (hidden,),
    }


def _shards(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        single = folder / "model.safetensors"
        if not single.is_file():
            raise CheckpointError(single, "there are no weights", USE_SAFETENSORS)
        return [single]
    shards = []
    for name in sorted(set(_weight_map(index).values())):
        if not name.endswith(".safetensors") or Path(name).name != name:
            raise CheckpointError(index, f"it names {name[:80]!r}, which is no file of this folder", DOWNLOAD_AGAIN)
        if not (folder / name).is_file():
            raise CheckpointError(folder / name, "the index names it and it is missing", "Download the missing file.")
        shards.append(folder / name)
    return shards


def _weight_map(index: Path) -> dict[str, str]:
    found = read_json(index).get("weight_map")
    if not isinstance(found, dict) or not found or not all(isinstance(name, str) for name in found.values()):
        raise CheckpointError(index, "it has no `weight_map`", DOWNLOAD_AGAIN)
    return found


def _check_index(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return
    named = _weight_map(index)
    for key in sorted(named.keys() | tensors.keys()):
        found = tensors[key].path.name if key in tensors else None
        if named.get(key) != found:
            raise CheckpointError(
                index,
                f"it has tensor {key!r} in {named.get(key)}, the files have it in {found}",
                DOWNLOAD_AGAIN,
            )


def _account(
    folder: Path, expected: Mapping[str, tuple[int, ...]], tensors: Mapping[str, Tensor], *, is_tied: bool
) -> dict[str, str]:
    """Compare what is there with what must be there; return the tensors to drop, each with the reason."""
    dropped = {}
    for key, tensor in tensors.items():
        if key in expected:
            if tensor.shape != expected[key]:
                raise CheckpointError(
                    tensor.path,
                    f"tensor {key!r} has shape {list(tensor.shape)}, the configuration asks for {list(expected[key])}",
                    SEE_PUBLISHED,
                )
            if tensor.dtype not in FLOATS:
                raise CheckpointError(
                    tensor.path, f"tensor {key!r} has dtype {tensor.dtype}", f"Use one in {', '.join(FLOATS)}."
                )
            continue
        reason = next((why for end, why in _DROPPED.items() if key.endswith(end)), None)
        if reason is None:
            hint = " (the head is tied to the embedding)" if is_tied and key == "lm_head.weight" else ""
            raise CheckpointError(
                tensor.path, f"tensor {key!r} belongs to no known part of the model{hint}", SEE_PUBLISHED
            )
        dropped[key] = reason
    missing = sorted(expected.keys() - tensors.keys())
    if missing:
        raise CheckpointError(
            folder,
            f"{len(missing)} tensors are missing, the first of them {missing[0]!r}",
            "Download the whole checkpoint, with all its files.",
        )
    return dropped
