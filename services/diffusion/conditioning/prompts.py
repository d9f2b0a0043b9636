"""Prompts as token ids, in pieces of CLIP's 77.

`stock` is what diffusers does: 75 content tokens, then the end token, then padding. `llmga` is LLMGA's
serving form (LLMGA.md §5.1): up to three such pieces with their weights, both prompts of a pair in the same
number of pieces, padding before the end token. What does not fit is counted, never dropped in silence.

Weight syntax belongs to people. The original parses what the language model wrote as well, so that an
ordinary parenthesis changes the picture and vanishes; such text is untrusted here, and `weighted=False` takes
its brackets literally.
"""

import math
from dataclasses import dataclass
from typing import Protocol

from services.diffusion.conditioning.weights import Fragment, parse_weights
from shared.contracts.generation import PromptEncoding

CHUNK = 77  # CLIP's positions
CONTENT = CHUNK - 2  # without the begin and end tokens
MAX_CHUNKS = {PromptEncoding.STOCK: 1, PromptEncoding.LLMGA: 3}  # three in text-to-image (LLMGA.md §5.1)


def capacity(encoding: PromptEncoding) -> int:
    """Return how many content tokens a prompt may have."""
    return CONTENT * MAX_CHUNKS[encoding]


class Vocabulary(Protocol):
    """A tokenizer, as far as prompts need it."""

    begin: int
    end: int
    pad: int

    def ids(self, text: str) -> list[int]:
        """Return the content tokens of the text, without limit and without begin and end."""


@dataclass(frozen=True, slots=True)
class Tokenized:
    """One prompt. `weights` has one number per id and is absent where all are one."""

    chunks: tuple[tuple[int, ...], ...]
    weights: tuple[float, ...] | None
    tokens: int
    truncated: int

    @property
    def length(self) -> int:
        """Positions of the embedding."""
        return CHUNK * len(self.chunks)


@dataclass(frozen=True, slots=True)
class PromptPair:
    """What guides a picture: the prompt, and the negative prompt where there is guidance."""

    prompt: Tokenized
    negative: Tokenized | None

    @property
    def length(self) -> int:
        """Positions of both embeddings."""
        return self.prompt.length


def tokenize(
    vocabulary: Vocabulary,
    encoding: PromptEncoding,
    prompt: str,
    negative: str | None,
    *,
    weighted: bool = True,
) -> PromptPair:
    """Tokenize a prompt and its negative prompt (`None` without guidance).

    `weighted` says whether the prompt's brackets are weight syntax; a negative prompt is always a person's.
    """
    if encoding is PromptEncoding.STOCK:
        return PromptPair(_stock(vocabulary, prompt), None if negative is None else _stock(vocabulary, negative))
    content = [_content(vocabulary, prompt, weighted=weighted)]
    if negative is not None:
        content.append(_content(vocabulary, negative, weighted=True))
    longest = max(len(ids) for ids, _ in content)
    chunks = min(max(math.ceil(longest / CONTENT), 1), MAX_CHUNKS[encoding])
    pair = [_long(vocabulary, ids, weights, chunks) for ids, weights in content]
    return PromptPair(pair[0], pair[1] if len(pair) > 1 else None)


def _stock(vocabulary: Vocabulary, text: str) -> Tokenized:
    content = vocabulary.ids(text)
    kept = content[:CONTENT]
    padding = [vocabulary.pad] * (CONTENT - len(kept))
    ids = (vocabulary.begin, *kept, vocabulary.end, *padding)
    return Tokenized((ids,), None, len(content), len(content) - len(kept))


def _content(vocabulary: Vocabulary, text: str, *, weighted: bool) -> tuple[list[int], list[float]]:
    ids: list[int] = []
    weights: list[float] = []
    for fragment in parse_weights(text) if weighted else [Fragment(text, 1.0)]:
        tokens = vocabulary.ids(fragment.text)
        ids += tokens
        weights += [fragment.weight] * len(tokens)
    return ids, weights


def _long(vocabulary: Vocabulary, content: list[int], weights: list[float], chunks: int) -> Tokenized:
    room = CONTENT * chunks
    kept, kept_weights = content[:room], weights[:room]
    padding = room - len(kept)
    ids = kept + [vocabulary.pad] * padding
    ones = kept_weights + [1.0] * padding
    pieces: list[tuple[int, ...]] = []
    spread: list[float] = []
    for start in range(0, room, CONTENT):
        pieces.append((vocabulary.begin, *ids[start : start + CONTENT], vocabulary.end))
        spread += [1.0, *ones[start : start + CONTENT], 1.0]
    is_plain = all(weight == 1.0 for weight in kept_weights)
    return Tokenized(tuple(pieces), None if is_plain else tuple(spread), len(content), len(content) - len(kept))
