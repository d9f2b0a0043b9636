"""Prompts as token ids, in pieces of CLIP's 77.

`stock` is what diffusers does: 75 content tokens, then the end token, then padding. `llmga` is LLMGA's
serving form (LLMGA.md §5.1): up to three such pieces with their weights, both prompts of a pair in the same
number of pieces, padding before the end token. What does not fit is counted, never dropped in silence.

SDXL has two text encoders, so a prompt is tokenized twice, with the padding of each; its long form has up to four
pieces, no weights, and no begin and end tokens inside (LLMGA.md §5.2). The second tokenizer pads with `!`, which
stands before the end token in the long form, where training had it, and behind it in stock's.

Weight syntax belongs to people. The original parses what the language model wrote as well, so that an
ordinary parenthesis changes the picture and vanishes; such text is untrusted here, and `weighted=False` takes
its brackets literally.
"""

import math
from dataclasses import dataclass, replace
from typing import Protocol

from services.diffusion.conditioning.weights import Fragment, parse_weights
from shared.contracts.generation import PromptEncoding

CHUNK = 77  # CLIP's positions
CONTENT = CHUNK - 2  # without the begin and end tokens
SD15_CHUNKS = 3  # in text-to-image (LLMGA.md §5.1)
SDXL_CHUNKS = 4  # LLMGA.md §5.2
TRAINING_CHUNKS = 4  # LLMGA.md §7.3


def capacity(encoding: PromptEncoding, *, is_sdxl: bool = False) -> int:
    """Return how many content tokens a prompt may have."""
    return CONTENT * _max_chunks(encoding, is_sdxl=is_sdxl)


def lengths(*, is_sdxl: bool) -> list[int]:
    """Return the numbers of tokens that a conditioned UNet may meet, in all encodings."""
    most = max(_max_chunks(encoding, is_sdxl=is_sdxl) for encoding in PromptEncoding)
    inner = 2 if is_sdxl else 0  # pieces are joined there: see `Tokenized`
    return [CHUNK * chunks - inner * (chunks - 1) for chunks in range(1, most + 1)]


def _max_chunks(encoding: PromptEncoding, *, is_sdxl: bool) -> int:
    if encoding is PromptEncoding.STOCK:
        return 1
    return SDXL_CHUNKS if is_sdxl else SD15_CHUNKS


class Vocabulary(Protocol):
    """A tokenizer, as far as prompts need it."""

    begin: int
    end: int
    pad: int

    def ids(self, text: str) -> list[int]:
        """Return the content tokens of the text, without limit and without begin and end."""


@dataclass(frozen=True, slots=True)
class Tokenized:
    """One prompt. `weights` has one number per id and is absent where all are one.

    second: the same pieces for SDXL's second text encoder. is_joined: whether the begin and end tokens between two
    pieces are left out of the embedding.
    """

    chunks: tuple[tuple[int, ...], ...]
    weights: tuple[float, ...] | None
    tokens: int
    truncated: int
    second: tuple[tuple[int, ...], ...] | None = None
    is_joined: bool = False

    @property
    def length(self) -> int:
        """Positions of the embedding."""
        inner = 2 * (len(self.chunks) - 1) if self.is_joined else 0
        return CHUNK * len(self.chunks) - inner


@dataclass(frozen=True, slots=True)
class PromptPair:
    """What guides a picture: the prompt, and the negative prompt where there is guidance.

    zero_negative: the unconditional embedding is zero (SDXL without a negative prompt); `negative` is absent then.
    source: of an edit, the caption of the picture as it is.
    """

    prompt: Tokenized
    negative: Tokenized | None
    zero_negative: bool = False
    source: Tokenized | None = None

    @property
    def length(self) -> int:
        """Positions of each embedding."""
        return self.prompt.length


def tokenize(
    vocabulary: Vocabulary,
    encoding: PromptEncoding,
    prompt: str,
    negative: str | None,
    *,
    weighted: bool = True,
    second: Vocabulary | None = None,
    zero_empty_negative: bool = False,
    source: str | None = None,
    weighted_source: bool = False,
) -> PromptPair:
    """Tokenize a prompt and its negative prompt (`None` without guidance).

    weighted: whether the prompt's brackets are weight syntax; a negative prompt is always a person's.
    second: SDXL's second tokenizer; its prompts have no weight syntax.
    zero_empty_negative: an empty negative prompt stands for an embedding of zeros (`force_zeros_for_empty_prompt`).
    source: of an edit, the caption of the picture as it is; `weighted_source`: whether its brackets are weight syntax.
        The original cuts it to 77 ids for one of its steps, and to other lengths for the others (LLMGA.md §5.4); here
        all texts get one form.
    """
    is_zero = zero_empty_negative and negative == ""
    texts = {"prompt": prompt, "negative": None if is_zero else negative, "source": source}
    given = {role: text for role, text in texts.items() if text is not None}
    if encoding is PromptEncoding.STOCK:
        forms = {role: _stock(vocabulary, second, text) for role, text in given.items()}
    else:
        has_weights = second is None
        by_a_person = {"prompt": weighted, "negative": True, "source": weighted_source}
        content = {
            role: _content(vocabulary, text, weighted=has_weights and by_a_person[role]) for role, text in given.items()
        }
        longest = max(len(ids) for ids, _ in content.values())
        chunks = min(max(math.ceil(longest / CONTENT), 1), _max_chunks(encoding, is_sdxl=second is not None))
        forms = {role: _long(vocabulary, second, ids, weights, chunks) for role, (ids, weights) in content.items()}
    return PromptPair(forms["prompt"], forms.get("negative"), is_zero, forms.get("source"))


def training_form(
    vocabulary: Vocabulary, prompt: str, *, second: Vocabulary | None = None, chunks: int | None = None
) -> Tokenized:
    """Tokenize a prompt as stage 2 learns it (LLMGA.md §7.3): up to four pieces, no weights, joined in the embedding.

    chunks: the number of pieces, where it is not the prompt's own; an empty prompt then gets the form of another.
    """
    content = vocabulary.ids(prompt)
    if chunks is None:
        chunks = min(max(math.ceil(len(content) / CONTENT), 1), TRAINING_CHUNKS)
    return replace(_long(vocabulary, second, content, [1.0] * len(content), chunks), is_joined=True)


def _stock(vocabulary: Vocabulary, second: Vocabulary | None, text: str) -> Tokenized:
    content = vocabulary.ids(text)
    kept = content[:CONTENT]

    def padded(by: Vocabulary) -> tuple[int, ...]:
        return (by.begin, *kept, by.end, *[by.pad] * (CONTENT - len(kept)))

    return Tokenized(
        (padded(vocabulary),),
        None,
        len(content),
        len(content) - len(kept),
        second=None if second is None else (padded(second),),
    )


def _content(vocabulary: Vocabulary, text: str, *, weighted: bool) -> tuple[list[int], list[float]]:
    ids: list[int] = []
    weights: list[float] = []
    for fragment in parse_weights(text) if weighted else [Fragment(text, 1.0)]:
        tokens = vocabulary.ids(fragment.text)
        ids += tokens
        weights += [fragment.weight] * len(tokens)
    return ids, weights


def _long(
    vocabulary: Vocabulary, second: Vocabulary | None, content: list[int], weights: list[float], chunks: int
) -> Tokenized:
    room = CONTENT * chunks
    kept = content[:room]
    padding = room - len(kept)
    ones = weights[:room] + [1.0] * padding
    starts = range(0, room, CONTENT)

    def pieces(by: Vocabulary) -> tuple[tuple[int, ...], ...]:
        ids = kept + [by.pad] * padding
        return tuple((by.begin, *ids[start : start + CONTENT], by.end) for start in starts)

    spread = tuple(weight for start in starts for weight in (1.0, *ones[start : start + CONTENT], 1.0))
    return Tokenized(
        pieces(vocabulary),
        None if all(weight == 1.0 for weight in ones) else spread,
        len(content),
        len(content) - len(kept),
        second=None if second is None else pieces(second),
        is_joined=second is not None,
    )
