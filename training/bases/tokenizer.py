"""CLIP's tokenizer, learned from text: byte-level BPE with lower case, in the files that transformers reads."""

from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

from services.diffusion.libraries import CLIPTokenizer
from training.runs.records import write_json

BEGIN, END = "<|startoftext|>", "<|endoftext|>"
END_OF_WORD = "</w>"


def write_tokenizer(folder: Path, lines: Iterable[str], count: int, *, pad: str = END) -> dict[str, int]:
    """Write a tokenizer with this number of merges, or fewer where the text has no more; return its vocabulary.

    The ids are in CLIP's order: bytes, bytes at the end of a word, merges, the two special tokens.
    """
    merges = learn_merges(lines, count)
    alphabet = sorted(_bytes_to_unicode().values())
    pieces = [*alphabet, *(byte + END_OF_WORD for byte in alphabet), *(a + b for a, b in merges), BEGIN, END]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "vocab.json", vocabulary)
    written = ["#version: 0.2", *(f"{a} {b}" for a, b in merges)]
    (folder / "merges.txt").write_text("\n".join(written) + "\n", encoding="utf-8")
    special = {"bos_token": BEGIN, "eos_token": END, "pad_token": pad, "unk_token": END}
    write_json(folder / "special_tokens_map.json", special)
    write_json(
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


def learn_merges(lines: Iterable[str], count: int) -> list[tuple[str, str]]:
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
