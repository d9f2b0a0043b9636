"""Small real tokenizers in the files that each family's training left behind (LLMGA.md §1.7), and their ids.

Vicuna, Llama-2, Mistral and Phi-3 were trained with the slow Llama tokenizer, which saves `tokenizer.model`;
Qwen2's slow one saves `vocab.json` and `merges.txt`; Llama-3 and Gemma have `tokenizer.json`. The ids are worked
out here with sentencepiece and `tokenizers` alone, never with what the converter writes.
"""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import sentencepiece
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from tests.services.mllm.checkpoints.published import write_json
from training.minis.requests import text as english

BOMB = "{% for a in range(10**9) %}{% for b in range(10**9) %}{{ a.__class__.__mro__ }}{% endfor %}{% endfor %}"
LEGACY = {"vicuna": False, "llama2": None, "mistral": True, "phi3": False}  # None: the settings do not say
PHI3_ADDED = ["<|endoftext|>", "<|assistant|>", "<|placeholder1|>", "<|placeholder2|>", "<|end|>", "<|user|>"]
LLAMA3_SPECIAL = ["<|begin_of_text|>", "<|end_of_text|>"] + [f"<|reserved_special_token_{n}|>" for n in range(3)]
LLAMA3_SPECIAL += ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
_LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2_SPLIT = _LLAMA3_SPLIT.replace("{1,3}", "")


@dataclass(frozen=True)
class FamilyTokenizer:
    """`encode` gives what `tokenizer(text).input_ids` gave in training, `size` is the number of its ids."""

    encode: Callable[[str], list[int]]
    size: int
    bos_id: int | None
    tokens: dict[str, int]


def write_tokenizer(folder: Path, family: str) -> FamilyTokenizer:
    """Train a small tokenizer of the family's kind and write the family's files."""
    if family in LEGACY:
        return _slow_llama(folder, family)
    return {"llama3": _llama3, "qwen2": _qwen2, "gemma": _gemma}[family](folder)


def by_the_sheet(tokenizer: FamilyTokenizer, prompt: str, image_id: int) -> list[int]:
    """Return the ids of a prompt in which ¶ stands where the picture is: LLMGA.md §1.7, word by word."""
    chunks = [tokenizer.encode(chunk) for chunk in prompt.split("¶")]
    ids: list[int] = []
    offset = 0
    if chunks[0] and chunks[0][0] == tokenizer.bos_id:
        offset = 1
        ids.append(chunks[0][0])
    for position, chunk in enumerate(chunks):
        if position:
            ids.append(image_id)
        ids += chunk[offset:]
    return ids


def corpus() -> list[str]:
    """Return what the tokenizers are trained on."""
    return [
        *list(english())[:1_500],
        "A chat between a curious user and an assistant. USER: ASSISTANT:",
        "画一个红色的圆形",
    ]


@cache
def sentencepiece_model() -> bytes:
    """Return a byte-pair model trained with the options of Llama's (vocabulary of 520)."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus()),
        model_writer=model,
        vocab_size=520,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        character_coverage=0.9995,
        minloglevel=2,
        num_threads=1,
    )
    return model.getvalue()


def _slow_llama(folder: Path, family: str) -> FamilyTokenizer:
    model = sentencepiece_model()
    (folder / "tokenizer.model").write_bytes(model)
    size = sentencepiece.SentencePieceProcessor(model_proto=model).get_piece_size()
    added = {"<unk>": 0, "<s>": 1, "</s>": 2}
    parts = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<unk>"}
    if family == "phi3":
        parts |= {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
        more = {token: size + index for index, token in enumerate(PHI3_ADDED)}
        write_json(folder / "added_tokens.json", more)
        added |= more
    # Phi-3's markers take the white space after them, all but the end of text.
    takes_space = {token for token in added if family == "phi3" and token not in {"<unk>", "<s>", "<|endoftext|>"}}
    settings: dict[str, Any] = {
        "add_bos_token": True,
        "add_eos_token": False,
        "added_tokens_decoder": {
            str(token_id): {
                "content": token,
                "lstrip": False,
                "normalized": False,
                "rstrip": token in takes_space,
                "single_word": False,
                "special": True,
            }
            for token, token_id in added.items()
        },
        "chat_template": BOMB,
        "model_max_length": 2_048,
        "padding_side": "right",
        "sp_model_kwargs": {},
        "tokenizer_class": "LlamaTokenizer",
        **parts,
    }
    if LEGACY[family] is not None:
        settings["legacy"] = LEGACY[family]
    write_json(folder / "tokenizer_config.json", settings)
    write_json(folder / "special_tokens_map.json", dict(parts))
    is_legacy = LEGACY[family] is not False
    encode = _SlowLlama(model, added, takes_space, set(parts.values()), is_legacy=is_legacy)
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    pieces = {processor.id_to_piece(index): index for index in range(size)}
    return FamilyTokenizer(encode, size + (len(PHI3_ADDED) if family == "phi3" else 0), 1, pieces | added)


class _SlowLlama:
    """The slow Llama tokenizer as transformers 4.37 had it, in both its forms."""

    def __init__(
        self, model: bytes, added: dict[str, int], takes_space: set[str], special: set[str], *, is_legacy: bool
    ) -> None:
        self.added, self.takes_space, self.special, self.is_legacy = added, takes_space, special, is_legacy
        if not is_legacy:
            from sentencepiece import sentencepiece_model_pb2 as messages

            proto: Any = messages.ModelProto.FromString(model)  # type: ignore[attr-defined]  # made by protoc
            proto.normalizer_spec.add_dummy_prefix = False
            model = proto.SerializeToString()
        self.processor = sentencepiece.SentencePieceProcessor(model_proto=model)

    def __call__(self, text: str) -> list[int]:
        if self.is_legacy or not text:
            return [1, *self._split(text)]
        ids = self._split("▁" + text.replace("▁", " "))
        # "▁" alone before a special token is taken back; other added tokens keep it.
        first = next((token for token, token_id in self.added.items() if ids[1:2] == [token_id]), None)
        if ids[0] == self.processor.piece_to_id("▁") and first in self.special:
            ids = ids[1:]
        return [1, *ids]

    def _split(self, text: str) -> list[int]:
        found = [(text.find(token), -len(token), token) for token in self.added if token in text]
        if not found:
            return list(self.processor.encode(text)) if text else []
        start, _, token = min(found)
        rest = text[start + len(token) :]
        if token in self.takes_space:
            rest = rest.lstrip()
        return [*self._split(text[:start]), self.added[token], *self._split(rest)]


def _byte_level(split: str, special: Sequence[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(split), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(corpus(), trainer)
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    return tokenizer


def _llama3(folder: Path) -> FamilyTokenizer:
    tokenizer = _byte_level(_LLAMA3_SPLIT, LLAMA3_SPECIAL)
    bos = "<|begin_of_text|>"
    bos_id = tokenizer.token_to_id(bos)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A $B", special_tokens=[(bos, bos_id)]
    )
    settings = {"bos_token": bos, "eos_token": "<|eot_id|>", "tokenizer_class": "PreTrainedTokenizerFast"}
    return _saved(folder, tokenizer, bos_id, settings)


def _gemma(folder: Path) -> FamilyTokenizer:
    special = [
        "<pad>",
        "<eos>",
        "<bos>",
        "<unk>",
        "<mask>",
        "<unused0>",
        "<unused1>",
        "<start_of_turn>",
        "<end_of_turn>",
    ]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=special + [f"<0x{byte:02X}>" for byte in range(256)], show_progress=False
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A $B", special_tokens=[("<bos>", 2)]
    )
    settings = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "tokenizer_class": "GemmaTokenizer"}
    return _saved(folder, tokenizer, 2, settings)


def _saved(folder: Path, tokenizer: Tokenizer, bos_id: int | None, settings: dict[str, str]) -> FamilyTokenizer:
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(folder / "tokenizer_config.json", {**settings, "chat_template": BOMB})
    (folder / "chat_template.jinja").write_text(BOMB)
    # As saved: what the trainer knew beside the file does not count.
    saved = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return FamilyTokenizer(lambda text: list(saved.encode(text).ids), saved.get_vocab_size(), bos_id, saved.get_vocab())


def _qwen2(folder: Path) -> FamilyTokenizer:
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer = _byte_level(_QWEN2_SPLIT, special)
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.model.save(str(folder))  # vocab.json and merges.txt
    write_json(
        folder / "tokenizer_config.json",
        {
            "added_tokens_decoder": {
                str(tokenizer.token_to_id(token)): {
                    "content": token,
                    "lstrip": False,
                    "normalized": False,
                    "rstrip": False,
                    "single_word": False,
                    "special": True,
                }
                for token in special
            },
            "bos_token": None,
            "chat_template": BOMB,
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
            "tokenizer_class": "Qwen2Tokenizer",
        },
    )
    return FamilyTokenizer(
        lambda text: list(tokenizer.encode(text).ids), tokenizer.get_vocab_size(), None, tokenizer.get_vocab()
    )
