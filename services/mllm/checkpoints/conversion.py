"""From the published LLMGA layout to the Hugging Face LLaVA layout that stock servers load (LLMGA.md §1.6).

Names are mapped by exact prefix, bytes are copied as they are. One thing changes values: where the original
scales picture features by sqrt(hidden_size) (Gemma), that factor is folded into the projector's last layer,
as servers leave features alone.

A conversion is written beside its target and renamed, one shard at a time, so that an interrupted one goes on
where it stopped and a target is complete or absent. It records what it was made from; the same source is
never converted twice.
"""

import fcntl
import json
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from services.mllm.checkpoints.errors import CheckpointError
from services.mllm.checkpoints.families import IMAGE_TOKENS, ignored_settings, text_config
from services.mllm.checkpoints.files import read_json
from services.mllm.checkpoints.fingerprint import fingerprint
from services.mllm.checkpoints.published import PROJECTOR_PREFIX, TOWER_PREFIX, Published, open_published
from services.mllm.checkpoints.sentencepiece_models import Added
from services.mllm.checkpoints.tensors import Entry, Tensor, read_floats, read_header, total_bytes, write_file
from services.mllm.conversation import TEMPLATES

FACTS = "llmga.json"
IMAGE_TOKEN = "<image>"
SPARE_TOKEN = "<|spare_row_{}|>"

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Facts:
    """What serving must know of a converted checkpoint, and what the conversion did; stored as `llmga.json`.

    space_before: tokens before which, at the beginning of a text, the tokenizer of training put a space.
    tells_changes: see `published.SERVING`.
    """

    family: str
    source: str
    fingerprint: str
    image_token: str
    image_token_id: int
    image_tokens: int
    image_size_px: int
    tower: str
    tensors: int
    tensor_bytes: int
    parameters: int
    dropped: dict[str, str]
    scaled: list[str]
    ignored_files: list[str]
    ignored_settings: list[str]
    tokenizer: str
    space_before: list[str]
    tells_changes: bool = False


def read_facts(folder: Path) -> Facts:
    """Return the facts of a converted checkpoint.

    Raises:
        CheckpointError: the folder was not written by `convert`.
    """
    found = read_json(folder / FACTS)
    try:
        return Facts(**found)
    except TypeError:
        raise CheckpointError(
            folder / FACTS, "it was written by another version", "Convert the checkpoint again."
        ) from None


def hf_name(name: str) -> str:
    """Return the Hugging Face LLaVA name of a published tensor."""
    if name.startswith(TOWER_PREFIX):
        return "vision_tower.vision_model." + name.removeprefix(TOWER_PREFIX)
    if name.startswith(PROJECTOR_PREFIX):
        layer, _, kind = name.removeprefix(PROJECTOR_PREFIX).partition(".")
        return f"multi_modal_projector.linear_{'1' if layer == '0' else '2'}.{kind}"
    return f"language_model.{name}"


def convert(
    source: Path,
    target: Path,
    *,
    name: str | None = None,
    tower: Path | None = None,
    progress: Progress = lambda _: None,
) -> Facts:
    """Convert a published checkpoint; a target that already holds this conversion is left as it is.

    `name` and `tower`: see `open_published`.

    Raises:
        CheckpointError: the source is refused, or the target holds something else.
    """
    published = open_published(source, name=name, tower_folder=tower)
    progress("comparing with earlier conversions")
    digest = fingerprint(published, memo=target.parent / ".digests.json")
    return convert_published(published, target, digest, progress=progress)


def convert_published(published: Published, target: Path, digest: str, *, progress: Progress = lambda _: None) -> Facts:
    """Convert a checkpoint that was opened, and whose fingerprint is known."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with _locked(target.parent):
        if target.exists():
            facts = read_facts(target)
            if facts.fingerprint != digest:
                raise CheckpointError(
                    target, "it holds another checkpoint", "Name another target or delete the folder."
                )
            return facts
        # Both may refuse, so before anything is written.
        image_token, generation = _image_token(published), _generation_config(published)
        partial = target.parent / f".{target.name}-{digest[:16]}.partial"
        partial.mkdir(exist_ok=True)
        scaled = _write_weights(published, partial, progress)
        _write_json(partial / "generation_config.json", generation)
        facts = _write_rest(published, partial, digest, scaled, image_token)
        os.rename(partial, target)
        _sync(target.parent)
        return facts


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the folder against other conversions; the lock goes with the process."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_weights(published: Published, folder: Path, progress: Progress) -> list[str]:
    by_shard: dict[Path, list[Tensor]] = {}
    for tensor in published.tensors.values():
        by_shard.setdefault(tensor.path, []).append(tensor)
    all_bytes, done_bytes = max(total_bytes(published.tensors), 1), 0
    scaled: list[str] = []
    weight_map: dict[str, str] = {}

    def copied(size_bytes: int) -> None:
        nonlocal done_bytes
        before, done_bytes = done_bytes * 10 // all_bytes, done_bytes + size_bytes
        if done_bytes * 10 // all_bytes > before:
            progress(f"copying tensors, {min(done_bytes * 10 // all_bytes, 10) * 10} %")

    for number, (_, tensors) in enumerate(sorted(by_shard.items()), start=1):
        file = "model.safetensors" if len(by_shard) == 1 else f"model-{number:05d}-of-{len(by_shard):05d}.safetensors"
        entries = [_entry(published, tensor) for tensor in tensors]
        scaled += [entry.name for entry in entries if entry.values is not None]
        weight_map |= {entry.name: file for entry in entries}
        if not (folder / file).exists():  # an interrupted conversion has written it already
            write_file(folder / f"{file}.writing", entries, copied=copied)
            os.rename(folder / f"{file}.writing", folder / file)
        written = read_header(folder / file)
        if {(entry.name, entry.dtype, entry.source.shape) for entry in entries} != {
            (tensor.name, tensor.dtype, tensor.shape) for tensor in written.values()
        }:
            raise CheckpointError(folder / file, "it does not hold what was to be written", "Delete the folder.")
    if len(by_shard) > 1:
        index = {"metadata": {"total_size": total_bytes(published.tensors)}, "weight_map": weight_map}
        _write_json(folder / "model.safetensors.index.json", index)
    return scaled


def _entry(published: Published, tensor: Tensor) -> Entry:
    values = None
    if published.architecture.scales_image and tensor.name.startswith(f"{PROJECTOR_PREFIX}2."):
        values = read_floats(tensor) * np.float32(math.sqrt(published.config["hidden_size"]))
    return Entry(hf_name(tensor.name), tensor, values)


def _write_rest(
    published: Published, folder: Path, digest: str, scaled: list[str], image: tuple[str, int, bool]
) -> Facts:
    image_token, image_token_id, is_new = image
    config = text_config(folder / "config.json", published.architecture, published.config)
    tower = published.tower
    stored = published.config.get("torch_dtype") or published.config.get("dtype") or "bfloat16"
    facts = Facts(
        family=published.family,
        source=published.name,
        fingerprint=digest,
        image_token=image_token,
        image_token_id=image_token_id,
        image_tokens=tower.tokens,
        image_size_px=tower.config["image_size"],
        tower=tower.origin,
        tensors=len(published.tensors),
        tensor_bytes=total_bytes(published.tensors),
        parameters=sum(math.prod(tensor.shape) for tensor in published.tensors.values()),
        dropped=published.dropped,
        scaled=scaled,
        ignored_files=published.ignored,
        ignored_settings=ignored_settings(published.config),
        tokenizer=published.vocabulary.path.name,
        space_before=list(published.vocabulary.space_before),
        tells_changes=published.tells_changes,
    )
    _write_json(
        folder / "config.json",
        {
            "architectures": ["LlavaForConditionalGeneration"],
            "model_type": "llava",
            "dtype": stored,
            "image_seq_length": tower.tokens,
            "image_token_index": image_token_id,
            "multimodal_projector_bias": True,
            "projector_hidden_act": "gelu",
            "text_config": {**config, "dtype": stored},
            "tie_word_embeddings": config["tie_word_embeddings"],
            "vision_config": {**tower.config, "model_type": "clip_vision_model", "dtype": stored},
            "vision_feature_layer": -2,
            "vision_feature_select_strategy": "default",
        },
    )
    _write_json(folder / "preprocessor_config.json", tower.preprocessor())
    _write_json(
        folder / "processor_config.json",
        {
            "image_token": image_token,
            "num_additional_image_tokens": 1,  # the class token, which the strategy drops again
            "patch_size": tower.config["patch_size"],
            "processor_class": "LlavaProcessor",
            "vision_feature_select_strategy": "default",
        },
    )
    _write_tokenizer(published, folder, (image_token, image_token_id) if is_new else None)
    _write_json(folder / FACTS, asdict(facts))
    return facts


def _image_token(published: Published) -> tuple[str, int, bool]:
    """Return the token that stands for the picture, its id, and whether the tokenizer has to learn it."""
    for token in (IMAGE_TOKENS.get(published.family), IMAGE_TOKEN):
        if token in published.vocabulary.tokens:
            return token, published.vocabulary.tokens[token], False
    free, rows = max(published.vocabulary.tokens.values()) + 1, published.config["vocab_size"]
    if free >= rows:
        raise CheckpointError(
            published.vocabulary.path,
            "it has neither a token that is never written nor a row of the embedding to spare for pictures",
            "Use the tokenizer of the published checkpoint.",
        )
    return IMAGE_TOKEN, free, True


def _generation_config(published: Published) -> dict[str, Any]:
    """Return the published sampling defaults, with the stop ids of the family (LLMGA.md §2)."""
    path = published.folder / "generation_config.json"
    config = read_json(path) if path.is_file() else {}
    stored = config.get("eos_token_id")
    ids = set(stored if isinstance(stored, list) else [] if stored is None else [stored])
    ids |= {
        published.vocabulary.tokens[token]
        for token in TEMPLATES[published.family].stop
        if token in published.vocabulary.tokens
    }
    if not ids or not all(type(value) is int and 0 <= value < published.config["vocab_size"] for value in ids):
        raise CheckpointError(path, "eos_token_id names no token", "Use the published generation_config.json.")
    return {**config, "eos_token_id": sorted(ids)}


def _write_tokenizer(published: Published, folder: Path, added: tuple[str, int] | None) -> None:
    tokenizer, tokens = published.vocabulary.content, published.vocabulary.tokens
    more = [Added(*added)] if added is not None else []
    # Servers fail on ids without a name, which the padding rows of Qwen2 and Phi-3 would be.
    named = {*tokens.values(), *(token.token_id for token in more)}
    more += [Added(SPARE_TOKEN.format(row), row) for row in range(published.config["vocab_size"]) if row not in named]
    added_tokens = [*tokenizer.get("added_tokens", []), *(token.as_json() for token in more)]
    tokenizer = {**tokenizer, "added_tokens": added_tokens}
    if isinstance(tokenizer["model"]["vocab"], dict):  # those in there keep their ids, others are given the next one
        vocabulary = tokenizer["model"]["vocab"] | {token["content"]: token["id"] for token in added_tokens}
        tokenizer["model"] = {**tokenizer["model"], "vocab": vocabulary}
    _write_json(folder / "tokenizer.json", tokenizer)
    _write_json(
        folder / "tokenizer_config.json",
        {
            **published.vocabulary.parts,
            "clean_up_tokenization_spaces": False,
            "model_max_length": published.config.get("tokenizer_model_max_length", 2_048),
            "padding_side": "right",
            # The class that takes tokenizer.json as it is: others rebuild it from parts and may differ.
            "tokenizer_class": "PreTrainedTokenizerFast",
        },
    )


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
