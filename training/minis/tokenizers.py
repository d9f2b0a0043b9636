"""Mini tokenizers of each family's kind, trained on our own text, in the files that the public checkpoints have.

Vicuna, Mistral and Phi-3 have sentencepiece models, Qwen2 byte pairs, Llama-3 byte pairs in one file, Gemma pieces with
byte fallback in one file (LLMGA.md §1.7).
"""

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import sentencepiece
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from training.minis.mllm import byte_pairs, write_byte_pairs
from training.minis.requests import text

PIECES = 512
_LEGACY = {"vicuna": False, "mistral": True, "phi3": False}
_PHI3 = ("<|endoftext|>", "<|assistant|>", "<|placeholder1|>", "<|end|>", "<|user|>")
_LLAMA3 = ("<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>", "<|reserved_special_token_1|>")
_LLAMA3_TURNS = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
_GEMMA = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<unused0>", "<unused1>", "<start_of_turn>", "<end_of_turn>")
# Llama-3's splitting rule: contractions, letters, up to three digits, signs, white space.
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def write_tokenizer(folder: Path, family: str) -> int:
    """Write the tokenizer of a family; return the number of its tokens."""
    if family in _LEGACY:
        return _sentencepiece(folder, family)
    writers: dict[str, Callable[[Path], int]] = {"qwen2": _qwen2, "llama3": _llama3, "gemma": _gemma}
    return writers[family](folder)


def _qwen2(folder: Path) -> int:
    tokenizer = byte_pairs()
    write_byte_pairs(folder, tokenizer)
    return int(tokenizer.get_vocab_size())


def _sentencepiece(folder: Path, family: str) -> int:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text()[:1_000]),
        model_writer=model,
        vocab_size=PIECES,
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
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    added = {token: index for index, token in enumerate(("<unk>", "<s>", "</s>"))}
    parts = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<unk>"}
    if family == "phi3":
        parts |= {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
        added |= {token: PIECES + index for index, token in enumerate(_PHI3)}
    _write(
        folder / "tokenizer_config.json",
        {
            "add_bos_token": True,
            "add_eos_token": False,
            # Phi-3's markers take the white space behind them, all but the end of text.
            "added_tokens_decoder": {
                str(index): _added(token, rstrip=token in _PHI3[1:] or (family == "phi3" and token == "</s>"))
                for token, index in added.items()
            },
            "legacy": _LEGACY[family],
            "model_max_length": 2_048,
            "tokenizer_class": "LlamaTokenizer",
            **parts,
        },
    )
    return PIECES + (len(_PHI3) if family == "phi3" else 0)


def _llama3(folder: Path) -> int:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    _train(tokenizer, initial_alphabet=alphabet)
    special = [*_LLAMA3, *_LLAMA3_TURNS]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    return _save(folder, tokenizer, bos=_LLAMA3[0], eos="<|eot_id|>", pad=_LLAMA3[2], kind="PreTrainedTokenizerFast")


def _gemma(folder: Path) -> int:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    _train(tokenizer, special_tokens=[*_GEMMA, *(f"<0x{byte:02X}>" for byte in range(256))])
    return _save(folder, tokenizer, bos="<bos>", eos="<eos>", pad="<pad>", kind="GemmaTokenizer")


def _train(tokenizer: Tokenizer, *, special_tokens: Sequence[str] = (), initial_alphabet: Sequence[str] = ()) -> None:
    trainer = trainers.BpeTrainer(
        vocab_size=PIECES,
        special_tokens=list(special_tokens),
        initial_alphabet=list(initial_alphabet),
        show_progress=False,
    )
    tokenizer.train_from_iterator(text()[:1_000], trainer)


def _save(folder: Path, tokenizer: Tokenizer, *, bos: str, eos: str, pad: str, kind: str) -> int:
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A $B", special_tokens=[(bos, tokenizer.token_to_id(bos))]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    _write(
        folder / "tokenizer_config.json",
        {"bos_token": bos, "eos_token": eos, "pad_token": pad, "tokenizer_class": kind},
    )
    return int(tokenizer.get_vocab_size())


def _added(token: str, *, rstrip: bool) -> dict[str, Any]:
    flags = {"lstrip": False, "normalized": False, "rstrip": rstrip, "single_word": False, "special": True}
    return {"content": token, **flags}


def _write(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
