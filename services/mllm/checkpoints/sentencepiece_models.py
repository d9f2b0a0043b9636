"""`tokenizer.model` to `tokenizer.json`: the same ids without the slow tokenizer that training used.

Vicuna, Mistral, Phi-3 and Llama-2 were trained with the slow Llama tokenizer (LLMGA.md §1.7): sentencepiece
over the stretches between added tokens. Its two forms differ in where the `▁` of a word's beginning is put:
`legacy` before every stretch, otherwise before the text alone, and there even when the text begins with an
added token (Phi-3's `<|user|>`), where fast tokenizers put none.

What is built is compared with sentencepiece itself, over texts of all kinds, before it is used.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from services.mllm.checkpoints.errors import DOWNLOAD_AGAIN, CheckpointError

UNDERLINE = "▁"
_UNKNOWN, _CONTROL, _USER_DEFINED = 2, 3, 4  # ModelProto.SentencePiece.Type
_BPE = 2  # TrainerSpec.ModelType

USE_BASE_TOKENIZER = "Put the tokenizer.json of the base model beside it and take tokenizer.model away."

# Compared one by one: words, numbers, white space of all kinds, scripts, bytes, signs of protocols.
_SAMPLES = (
    "a",
    "Draw a red circle.",
    "A chat between a curious user and an assistant. USER: hello ASSISTANT:",
    "[INST] <<SYS>>\n\n<</SYS>>\n\nwhat is this? [/INST]",
    "<gen_image> a fox in the snow, at night </gen_image>",
    "\nWhat is in the picture?\n",
    "two  spaces,   three, and one at the end ",
    "tab\tand\r\nline ends\n\n\n",
    "it's 12345.678, 50 % of 1,000",
    "CamelCase snake_case kebab-case don't I'll",
    "画一个红色的圆形,背景是雪山。",
    "猫 and собака and κύων and कुत्ता",
    "emoji 🦊🎨 and e\u0301 and \u00e9 and \u200b",
    "https://example.org/a?b=c&d=[e]#f",
    "a▁b ▁ c",
    "x" * 40,
)


@dataclass(frozen=True)
class Added:
    """A token that is found in a text before anything else."""

    content: str
    token_id: int
    lstrip: bool = False
    rstrip: bool = False
    special: bool = True

    def as_json(self) -> dict[str, Any]:
        """Return the entry of `added_tokens`; matched in the text as it was written, as the slow form does."""
        return {
            "id": self.token_id,
            "content": self.content,
            "single_word": False,
            "lstrip": self.lstrip,
            "rstrip": self.rstrip,
            "normalized": False,
            "special": self.special,
        }


@dataclass(frozen=True)
class Form:
    """How text is put to sentencepiece.

    prefix: before what a `▁` goes: every stretch between added tokens, the text, or nothing.
    space_before: added tokens before which it goes even at the beginning of a text.
    """

    prefix: str
    space_before: tuple[str, ...] = ()


def build(path: Path, added: Sequence[Added], form: Form, *, bos: str | None) -> dict[str, Any]:
    """Return the `tokenizer.json` for a sentencepiece model.

    added: what the checkpoint adds to the model or overrides in it. bos: the token before every text.

    Raises:
        CheckpointError: the file is damaged, or of another kind than the families', or gives other ids.
    """
    model = _read(path)
    pieces = [piece.piece for piece in model.pieces]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    if len(vocabulary) != len(pieces):
        raise CheckpointError(path, "it has a piece twice", DOWNLOAD_AGAIN)
    kinds = {_UNKNOWN, _CONTROL, _USER_DEFINED}
    tokens = {
        piece.piece: Added(piece.piece, index, special=piece.type != _USER_DEFINED)
        for index, piece in enumerate(model.pieces)
        if piece.type in kinds
    } | {token.content: token for token in added}
    for token in tokens.values():
        if vocabulary.get(token.content, token.token_id) != token.token_id:
            raise CheckpointError(
                path, f"{token.content!r} has another id in it than in the files beside it", DOWNLOAD_AGAIN
            )
    if bos is not None and bos not in tokens:
        raise CheckpointError(path, f"the token {bos[:40]!r}, which starts every text, is not in it", DOWNLOAD_AGAIN)
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [token.as_json() for token in sorted(tokens.values(), key=lambda token: token.token_id)],
        **_steps(form),
        "post_processor": _bos_processor(bos, tokens[bos].token_id) if bos is not None else None,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": model.trainer_spec.unk_piece,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": model.trainer_spec.byte_fallback,
            "ignore_merges": False,
            "vocab": vocabulary,
            "merges": _merges(model.pieces, vocabulary),
        },
    }
    _compare(path, tokenizer, model, list(tokens.values()), form, bos)
    return tokenizer


def _read(path: Path) -> Any:
    # Protocol buffers take a while to import, and most checkpoints have a tokenizer.json.
    messages: Any = import_module("sentencepiece.sentencepiece_model_pb2")
    model = messages.ModelProto()
    try:
        model.ParseFromString(path.read_bytes())
    except Exception:  # of several kinds, by the implementation of protocol buffers
        raise CheckpointError(path, "it is not a sentencepiece model", DOWNLOAD_AGAIN) from None
    spec = model.normalizer_spec
    if not model.pieces:
        raise CheckpointError(path, "it is not a sentencepiece model", DOWNLOAD_AGAIN)
    if model.trainer_spec.model_type != _BPE:
        raise CheckpointError(path, "it is not of the byte-pair kind, as all families' are", USE_BASE_TOKENIZER)
    if spec.precompiled_charsmap or spec.remove_extra_whitespaces:
        raise CheckpointError(path, "it changes texts before it splits them, as no family's does", USE_BASE_TOKENIZER)
    return model


def _merges(pieces: Iterable[Any], vocabulary: Mapping[str, int]) -> list[list[str]]:
    """Return which pieces are put together, first to last: by the score of what they give."""
    ranked = []
    for piece in pieces:
        text = piece.piece
        for cut in range(1, len(text)):
            left, right = text[:cut], text[cut:]
            if left in vocabulary and right in vocabulary:
                ranked.append((-piece.score, vocabulary[text], vocabulary[left], vocabulary[right], left, right))
    return [[left, right] for *_, left, right in sorted(ranked)]


def _steps(form: Form) -> dict[str, Any]:
    to_underline = {"type": "Replace", "pattern": {"String": " "}, "content": UNDERLINE}
    decoders: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": UNDERLINE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if form.prefix != "nothing":
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    normalizer: dict[str, Any] | None = to_underline
    splitter = None
    if form.prefix == "stretch":
        prepend = {"type": "Prepend", "prepend": UNDERLINE}
        normalizer = {"type": "Sequence", "normalizers": [prepend, to_underline]}
    elif form.prefix == "text":
        normalizer = None
        splitter = {"type": "Metaspace", "replacement": UNDERLINE, "prepend_scheme": "first", "split": False}
    return {
        "normalizer": normalizer,
        "pre_tokenizer": splitter,
        "decoder": {"type": "Sequence", "decoders": decoders},
    }


def _bos_processor(bos: str, bos_id: int) -> dict[str, Any]:
    start = {"SpecialToken": {"id": bos, "type_id": 0}}
    first, second = ({"Sequence": {"id": name, "type_id": number}} for number, name in enumerate("AB"))
    return {
        "type": "TemplateProcessing",
        "single": [start, first],
        "pair": [start, first, second],
        "special_tokens": {bos: {"id": bos, "ids": [bos_id], "tokens": [bos]}},
    }


def _compare(
    path: Path, tokenizer: Mapping[str, Any], model: Any, added: Sequence[Added], form: Form, bos: str | None
) -> None:
    """Refuse what gives other ids than sentencepiece does."""
    import sentencepiece
    from tokenizers import Tokenizer

    try:
        built = Tokenizer.from_str(json.dumps(tokenizer))
        model.normalizer_spec.add_dummy_prefix = form.prefix == "stretch"
        processor = sentencepiece.SentencePieceProcessor(model_proto=model.SerializeToString())
    except Exception:  # both raise bare exceptions for what they cannot read
        raise CheckpointError(path, "it cannot be made into a tokenizer", USE_BASE_TOKENIZER) from None
    if any(built.token_to_id(token.content) != token.token_id for token in added):
        raise CheckpointError(path, "the ids of the added tokens leave a hole after it", DOWNLOAD_AGAIN)
    starts = [token.token_id for token in added if token.content == bos]
    samples = [*_SAMPLES]
    for token in added:
        if not token.content.isspace():
            samples += [f"{token.content}\nUSER: hi{token.content}ok", f"a {token.content} {token.content} b"]
    for text in samples:
        expected = starts + _slow(processor, added, form, text)
        lead = " " if text.startswith(form.space_before) else ""
        if built.encode(lead + text).ids != expected:
            raise CheckpointError(
                path, f"the text {text[:40]!r} gets other ids than sentencepiece gives it", USE_BASE_TOKENIZER
            )


def _slow(processor: Any, added: Sequence[Added], form: Form, text: str) -> list[int]:
    """Return the ids that the slow tokenizer gives, without BOS."""
    by_content = {token.content: token for token in added}
    contents = sorted(by_content, key=len, reverse=True)
    # ends and stretches alternate: stretch, token, stretch, token, …, stretch
    parts = re.split("(" + "|".join(map(re.escape, contents)) + ")", text) if contents else [text]
    if form.prefix == "text" and (parts[0] or text.startswith(form.space_before)):
        parts[0] = UNDERLINE + parts[0]
    ids: list[int] = []
    for index, part in enumerate(parts):
        if index % 2:
            ids.append(by_content[part].token_id)
            continue
        if index and by_content[parts[index - 1]].rstrip:
            part = part.lstrip()
        if index + 1 < len(parts) and by_content[parts[index + 1]].lstrip:
            part = part.rstrip()
        if part:
            ids += processor.encode(part)
    return ids
