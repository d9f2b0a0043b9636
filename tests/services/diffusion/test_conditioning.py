"""Prompts against an independent, plain reading of LLMGA.md §5.1, and against diffusers."""

import math
import re
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from services.diffusion.conditioning.encoder import PromptEncoder, apply_weights
from services.diffusion.conditioning.prompts import capacity, tokenize
from services.diffusion.conditioning.weights import parse_weights
from services.diffusion.loading import LoadedModel
from shared.contracts.generation import PromptEncoding

LLMGA = PromptEncoding.LLMGA


def weigh(prompt: str) -> list[tuple[str, float]]:
    """Return (character, weight) of a prompt: a plain recursive reading of the syntax.

    Brackets are matched by a search for the closing one; each level multiplies what is inside it.
    """
    out: list[tuple[str, float]] = []
    opened: list[tuple[str, int]] = []
    rest = prompt
    while rest:
        escaped = re.match(r"\\([\\()\[\]]?)", rest)
        explicit = re.match(r":([+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+))\)", rest)
        has_round = any(kind == "(" for kind, _ in opened)
        has_square = any(kind == "[" for kind, _ in opened)
        factor = 0.0
        if escaped:
            out += [(sign, 1.0) for sign in escaped[1]]
            rest = rest[len(escaped[0]) :]
            continue
        if rest[0] in "([":
            opened.append((rest[0], len(out)))
            rest = rest[1:]
            continue
        if explicit and has_round:
            kind, factor, used = "(", float(explicit[1]), len(explicit[0])
        elif rest[0] == ")" and has_round:
            kind, factor, used = "(", 1.1, 1
        elif rest[0] == "]" and has_square:
            kind, factor, used = "[", 1 / 1.1, 1
        else:
            out.append((rest[0], 1.0))
            rest = rest[1:]
            continue
        last = max(index for index, (one, _) in enumerate(opened) if one == kind)
        start = opened.pop(last)[1]
        out = out[:start] + [(sign, weight * factor) for sign, weight in out[start:]]
        rest = rest[used:]
    for kind, start in opened:
        factor = 1.1 if kind == "(" else 1 / 1.1
        out = out[:start] + [(sign, weight * factor) for sign, weight in out[start:]]
    return out


def reference_embedding(model: LoadedModel, stock: Any, prompt: str, chunks: int) -> torch.Tensor:
    """Return the embedding (77n, channels) that §5.1 describes, by transformers' tokenizer and encoder."""
    tokenizer, encoder = stock.tokenizer, stock.text_encoder
    runs: list[tuple[str, float]] = []
    for sign, weight in weigh(prompt):
        if runs and runs[-1][1] == weight:
            runs[-1] = (runs[-1][0] + sign, weight)
        else:
            runs.append((sign, weight))
    ids: list[int] = []
    weights: list[float] = []
    for text, weight in runs:
        found = tokenizer(text).input_ids[1:-1]
        ids += found
        weights += [weight] * len(found)
    ids, weights = ids[: 75 * chunks], weights[: 75 * chunks]
    while len(ids) < 75 * chunks:
        ids.append(tokenizer.pad_token_id)
        weights.append(1.0)
    sequence = [tokenizer.bos_token_id, *ids, tokenizer.eos_token_id]
    assert len(sequence) == 75 * chunks + 2
    parts, spread = [], []
    for index in range(chunks):
        piece = sequence[75 * index : 75 * index + 77]
        piece[0], piece[-1] = tokenizer.bos_token_id, tokenizer.eos_token_id
        with torch.no_grad():
            parts.append(encoder(torch.tensor([piece])).last_hidden_state[0])
        spread += [1.0, *weights[75 * index : 75 * index + 75], 1.0]
    embedding = torch.cat(parts)
    weighted = embedding * torch.tensor(spread)[:, None]
    return weighted * (embedding.mean() / weighted.mean())


@pytest.mark.parametrize(
    ("prompt", "fragments"),
    [
        ("a red circle", [("a red circle", 1.0)]),
        ("a (red) circle", [("a ", 1.0), ("red", 1.1), (" circle", 1.0)]),
        ("a [red] circle", [("a ", 1.0), ("red", 1 / 1.1), (" circle", 1.0)]),
        ("(red:1.5)", [("red", 1.5)]),
        ("(red:.5) (blue:-1)", [("red", 0.5), (" ", 1.0), ("blue", -1.0)]),
        ("((a) b)", [("a", 1.1 * 1.1), (" b", 1.1)]),
        ("((a:2) b:3)", [("a", 6.0), (" b", 3.0)]),
        (r"a \(b\) \[c\] \\", [("a (b) [c] \\", 1.0)]),
        ("a (b", [("a ", 1.0), ("b", 1.1)]),
        ("a [b", [("a ", 1.0), ("b", 1 / 1.1)]),
        ("a) b] c:1.5) d", [("a) b] c:1.5) d", 1.0)]),
        ("(a:1.2.3)", [("a:1.2.3", 1.1)]),
        ("time: noon", [("time: noon", 1.0)]),
        ("(a)(b)", [("ab", 1.1)]),
        ("()[]", []),
        ("", []),
    ],
)
def test_weight_syntax(prompt: str, fragments: list[tuple[str, float]]) -> None:
    found = parse_weights(prompt)
    assert [fragment.text for fragment in found] == [text for text, _ in fragments]
    assert [fragment.weight for fragment in found] == pytest.approx([weight for _, weight in fragments])


@given(st.text(alphabet="ab ()[]:\\.15", max_size=40))
def test_weight_syntax_equals_the_plain_reading(prompt: str) -> None:
    expected = weigh(prompt)
    found = [(sign, fragment.weight) for fragment in parse_weights(prompt) for sign in fragment.text]
    assert [sign for sign, _ in found] == [sign for sign, _ in expected]
    for (_, weight), (_, wanted) in zip(found, expected, strict=True):
        assert math.isclose(weight, wanted, rel_tol=1e-12)


def test_neighbouring_fragments_differ_in_weight() -> None:
    fragments = parse_weights("a (b) (c:1.1)d[e]f")
    assert all(one.weight != other.weight and one.text for one, other in pairwise(fragments))


@pytest.mark.parametrize(
    ("prompt", "negative", "chunks"),
    [
        ("a red circle", "", 1),
        ("", "", 1),
        ("a (red:1.4) circle with [blue] edges \\(round\\)", "blurry, (dark)", 1),
        ("a snowman at night " * 20, "", 2),
        ("a red circle", "a blue square " * 60, 3),
        ("a (red circle:1.3) and [a blue square] " * 30, "(dark:1.2)", 3),
        ("红色的圆 and a 🧿 (ring:0.7)", "x", 1),
    ],
)
def test_long_prompts_equal_the_plain_reading(
    model: LoadedModel, stock: Any, prompt: str, negative: str, chunks: int
) -> None:
    pair = tokenize(model.vocabulary, LLMGA, prompt, negative)
    assert pair.negative is not None
    for text, tokenized in ((prompt, pair.prompt), (negative, pair.negative)):
        assert tokenized.length == 77 * chunks
        with torch.inference_mode():
            embedding = model.encoder.encode(tokenized).tokens
        expected = reference_embedding(model, stock, text, chunks)
        assert embedding.shape == expected.shape
        torch.testing.assert_close(embedding.clone(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("prompt", ["", "a red circle", "a " * 70, "画一个雪人 at night"])
def test_short_prompts_are_equal_in_both_encodings_and_to_diffusers(
    model: LoadedModel, stock: Any, prompt: str
) -> None:
    long = tokenize(model.vocabulary, LLMGA, prompt, None).prompt
    short = tokenize(model.vocabulary, PromptEncoding.STOCK, prompt, None).prompt
    assert long.chunks == short.chunks
    assert long.weights is None
    ids = stock.tokenizer(prompt, padding="max_length", max_length=77, truncation=True).input_ids
    assert list(short.chunks[0]) == ids


def test_what_does_not_fit_is_counted(model: LoadedModel) -> None:
    content = len(model.vocabulary.ids("a red circle " * 100))
    assert content > capacity(LLMGA) == 225
    for encoding in PromptEncoding:
        tokenized = tokenize(model.vocabulary, encoding, "a red circle " * 100, "").prompt
        assert tokenized.tokens == content
        assert tokenized.truncated == content - capacity(encoding)
        assert len(tokenized.chunks) == capacity(encoding) // 75
    fits = tokenize(model.vocabulary, LLMGA, "red " * 225, None).prompt
    assert (fits.tokens, fits.truncated) == (225, 0)


def test_brackets_of_untrusted_text_are_text(model: LoadedModel) -> None:
    text = "a house (a square with a brown triangle) [left]"
    literal = tokenize(model.vocabulary, LLMGA, text, "(dark)", weighted=False)
    assert literal.prompt.weights is None
    assert literal.prompt.tokens == len(model.vocabulary.ids(text))
    assert literal.negative is not None
    assert literal.negative.weights is not None, "a negative prompt is a person's"
    assert tokenize(model.vocabulary, LLMGA, text, None).prompt.weights is not None


def test_the_stock_encoding_knows_no_weights(model: LoadedModel) -> None:
    text = "a (red:1.5) circle"
    tokenized = tokenize(model.vocabulary, PromptEncoding.STOCK, text, None).prompt
    assert tokenized.weights is None
    assert tokenized.tokens == len(model.vocabulary.ids(text))


def test_weighing_keeps_the_mean() -> None:
    embedding = torch.randn(77, 32, generator=torch.Generator().manual_seed(0)) + 0.5
    weights = torch.ones(77)
    assert torch.equal(apply_weights(embedding, weights), embedding)
    weights[5:20] = 1.7
    weighted = apply_weights(embedding, weights)
    assert not torch.equal(weighted, embedding)
    torch.testing.assert_close(weighted.mean(), embedding.mean())


def test_the_cache_forgets_what_was_used_least_lately(stock: Any, model: LoadedModel) -> None:
    piece_bytes = 77 * stock.text_encoder.config.hidden_size * 4
    encoder = PromptEncoder(stock.text_encoder, model.device, torch.float32, cache_bytes=2 * piece_bytes)
    one, two, three = (tokenize(model.vocabulary, LLMGA, text, None).prompt for text in ("one", "two", "three"))
    with torch.inference_mode():
        for tokenized in (one, two, one, three, one):
            encoder.encode(tokenized)
        assert encoder.calls == 3
        encoder.encode(two)
    assert encoder.calls == 4
