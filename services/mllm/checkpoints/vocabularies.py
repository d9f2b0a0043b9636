"""A checkpoint's tokenizer, in whichever files it comes: read, checked, and brought into one form.

The families' code decides which files count: those trained with the slow tokenizer are rebuilt from
`tokenizer.model`, others are taken from `tokenizer.json` as they are, and Qwen2's may come as `vocab.json` and
`merges.txt`. Nothing else of a tokenizer's settings is used than which tokens play which part: no class, no
chat template, no path.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.mllm.checkpoints.errors import DOWNLOAD_AGAIN, CheckpointError
from services.mllm.checkpoints.families import Architecture
from services.mllm.checkpoints.files import MAX_JSON_BYTES, read_json
from services.mllm.checkpoints.sentencepiece_models import Added, Form, build

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
)
PARTS = ("bos_token", "eos_token", "unk_token", "pad_token")

# Qwen2's splitting rule: contractions, letters, single digits, signs, white space.
_QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_MALFORMED = "its entries of added tokens are malformed"


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer that was read.

    path: the file that it was read from. content: its `tokenizer.json`. tokens: all tokens with their ids.
    parts: the tokens that start and end texts, and so on. space_before: see `Facts`.
    """

    path: Path
    content: dict[str, Any]
    tokens: dict[str, int]
    parts: dict[str, str]
    space_before: tuple[str, ...] = ()


def open_vocabulary(folder: Path, architecture: Architecture) -> Vocabulary:
    """Read the tokenizer of a checkpoint.

    Raises:
        CheckpointError: there is none, or it cannot be used.
    """
    vocabulary = _read(folder, architecture)
    # A second of the start-up, and vLLM needs it too: what it cannot read would end it later, without a remedy.
    from tokenizers import Tokenizer

    try:
        ids = Tokenizer.from_str(json.dumps(vocabulary.content)).get_vocab(with_added_tokens=True)
    except Exception:  # a bare exception for whatever it cannot read
        raise CheckpointError(vocabulary.path, "it is no tokenizer that can be loaded", DOWNLOAD_AGAIN) from None
    if ids != vocabulary.tokens:
        raise CheckpointError(vocabulary.path, "its ids contradict each other", DOWNLOAD_AGAIN)
    return vocabulary


def _read(folder: Path, architecture: Architecture) -> Vocabulary:
    settings = _optional(folder / "tokenizer_config.json")
    special = _optional(folder / "special_tokens_map.json")
    parts = {name: token for name in PARTS if (token := _content(settings.get(name) or special.get(name)))}
    stored = folder / "tokenizer.json"
    model = folder / "tokenizer.model"
    if stored.is_file():
        content = read_json(stored)
        tokens = _tokens(stored, content)
        # Llama-3 has no slow tokenizer.
        if not (architecture.is_trained_slow and model.is_file()) or "<|eot_id|>" in tokens:
            return Vocabulary(stored, content, tokens, parts)
    if model.is_file():
        return _from_model(folder, architecture, settings, special, parts)
    if architecture.model_type == "qwen2" and (folder / "vocab.json").is_file():
        return _from_byte_pairs(folder, settings, parts)
    raise CheckpointError(stored, "it is missing", "Download the whole checkpoint, with all its files.")


def _from_model(
    folder: Path,
    architecture: Architecture,
    settings: Mapping[str, Any],
    special: Mapping[str, Any],
    parts: Mapping[str, str],
) -> Vocabulary:
    path = folder / "tokenizer.model"
    if path.stat().st_size > MAX_JSON_BYTES:
        raise CheckpointError(path, f"it is larger than {MAX_JSON_BYTES} bytes", DOWNLOAD_AGAIN)
    gemma = architecture.model_type == "gemma"
    defaults = {"bos_token": "<bos>", "eos_token": "<eos>"} if gemma else {"bos_token": "<s>", "eos_token": "</s>"}
    parts = {**defaults, "unk_token": "<unk>", **parts}
    added = _added(folder, settings)
    if gemma:
        form = Form("nothing")
    elif settings.get("legacy", True) is not False:  # what the slow tokenizer assumed when nothing was said
        form = Form("stretch")
    else:
        # The slow form takes its `▁` back before these only.
        known = {*parts.values(), *(_content(token) for token in _listed(settings, special))}
        form = Form("text", tuple(sorted(token.content for token in added if token.content not in known)))
    bos = parts["bos_token"] if settings.get("add_bos_token", True) is not False else None
    content = build(path, added, form, bos=bos)
    return Vocabulary(path, content, _tokens(path, content), dict(parts), form.space_before)


def _listed(settings: Mapping[str, Any], special: Mapping[str, Any]) -> list[Any]:
    found = settings.get("additional_special_tokens") or special.get("additional_special_tokens")
    return found if isinstance(found, list) else []


def _from_byte_pairs(folder: Path, settings: Mapping[str, Any], parts: Mapping[str, str]) -> Vocabulary:
    path, merges_path = folder / "vocab.json", folder / "merges.txt"
    vocabulary = read_json(path)
    try:
        lines = merges_path.read_text(encoding="utf-8").split("\n")
    except (OSError, ValueError):
        raise CheckpointError(
            merges_path, "it is missing or no text", "Download the whole checkpoint, with all its files."
        ) from None
    merges = [line.split(" ") for line in lines if line and not line.startswith("#version")]
    if not all(len(pair) == 2 and pair[0] in vocabulary and pair[1] in vocabulary for pair in merges):
        raise CheckpointError(merges_path, "it does not belong to vocab.json", DOWNLOAD_AGAIN)
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            token.as_json() for token in sorted(_added(folder, settings), key=lambda token: token.token_id)
        ],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": _QWEN2_SPLIT}, "behavior": "Isolated", "invert": False},
                {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False},
            ],
        },
        "post_processor": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False},
        "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocabulary,
            "merges": merges,
        },
    }
    return Vocabulary(path, content, _tokens(path, content), dict(parts))


def _optional(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _content(token: object) -> str | None:
    """Return a token that is given as a string or as an object."""
    found = token.get("content") if isinstance(token, dict) else token
    return found if isinstance(found, str) and found else None


def _added(folder: Path, settings: Mapping[str, Any]) -> list[Added]:
    """Return the tokens that the files beside the vocabulary add to it."""
    path = folder / "tokenizer_config.json"
    listed = settings.get("added_tokens_decoder", {})
    more = _optional(folder / "added_tokens.json")
    try:
        found = {
            entry["content"]: Added(
                content=entry["content"],
                token_id=int(key),
                lstrip=entry.get("lstrip", False) is True,
                rstrip=entry.get("rstrip", False) is True,
                special=entry.get("special", False) is True,
            )
            for key, entry in listed.items()
        }
        for content, token_id in more.items():
            found.setdefault(content, Added(content, token_id))
    except (TypeError, ValueError, KeyError, AttributeError):
        raise CheckpointError(path, _MALFORMED, DOWNLOAD_AGAIN) from None
    tokens = list(found.values())
    if not all(
        isinstance(token.content, str) and token.content and type(token.token_id) is int and token.token_id >= 0
        for token in tokens
    ):
        raise CheckpointError(path, _MALFORMED, DOWNLOAD_AGAIN)
    return tokens


def _tokens(path: Path, tokenizer: Mapping[str, Any]) -> dict[str, int]:
    """Return all tokens with their ids."""
    tokens: dict[str, int] = {}
    try:
        vocabulary = tokenizer["model"]["vocab"]
        if isinstance(vocabulary, list):  # Unigram: pairs of token and score
            tokens |= {token: index for index, (token, _) in enumerate(vocabulary)}
        else:
            tokens |= vocabulary
        tokens |= {added["content"]: added["id"] for added in tokenizer.get("added_tokens", [])}
        sound = bool(tokens) and all(type(index) is int and index >= 0 for index in tokens.values())
    except (TypeError, KeyError, ValueError, AttributeError):
        sound = False
    if not sound:
        raise CheckpointError(path, "it is not a tokenizer", DOWNLOAD_AGAIN)
    return tokens
