"""The weight syntax of prompts, as A1111 introduced it (LLMGA.md §5.1).

`(x)` weighs 1.1 times as much, `[x]` 1/1.1 times, `(x:1.5)` 1.5 times; brackets nest and multiply. A
backslash takes the meaning from the bracket or backslash behind it, and vanishes itself. A bracket that is
never closed applies to the end, one that was never opened is text.
"""

import math
import re
from dataclasses import dataclass

import numpy as np

_ROUND = 1.1
_SQUARE = 1 / 1.1
_EXPLICIT = re.compile(r":([+-]?[.0-9]+)\)")
_PLAIN = re.compile(r"[^\\()\[\]:]+")


@dataclass(frozen=True, slots=True)
class Fragment:
    """A run of text of one weight."""

    text: str
    weight: float


def parse_weights(prompt: str) -> list[Fragment]:
    """Return the fragments of a prompt in order; neighbours have different weights, and none is empty."""
    texts: list[str] = []
    weights = np.ones(len(prompt))  # by text; an array, as thousands of brackets may each multiply all behind them
    opened: dict[str, list[int]] = {"(": [], "[": []}

    def multiply(start: int, factor: float) -> None:
        with np.errstate(over="ignore"):  # endless nesting ends at infinity, and the picture with an error
            weights[start : len(texts)] *= factor

    position = 0
    while position < len(prompt):
        sign = prompt[position]
        explicit = _explicit_weight(prompt, position) if opened["("] else None
        taken = 1
        text = sign
        if sign == "\\":
            following = prompt[position + 1 : position + 2]
            text = following if following and following in "\\()[]" else ""
            taken += len(text)
        elif sign in "([":
            opened[sign].append(len(texts))
            text = ""
        elif explicit is not None:
            factor, taken = explicit
            multiply(opened["("].pop(), factor)
            text = ""
        elif sign == ")" and opened["("]:
            multiply(opened["("].pop(), _ROUND)
            text = ""
        elif sign == "]" and opened["["]:
            multiply(opened["["].pop(), _SQUARE)
            text = ""
        elif plain := _PLAIN.match(prompt, position):
            text = plain[0]
            taken = len(text)
        if text:
            texts.append(text)
        position += taken
    for start in opened["("]:
        multiply(start, _ROUND)
    for start in opened["["]:
        multiply(start, _SQUARE)
    return _merge(texts, weights[: len(texts)].tolist())


def _explicit_weight(prompt: str, position: int) -> tuple[float, int] | None:
    """Return (factor, characters) of `:1.5)` at this position; what is no finite number is text."""
    match = _EXPLICIT.match(prompt, position)
    if match is None:
        return None
    try:
        factor = float(match[1])
    except ValueError:
        return None
    return (factor, len(match[0])) if math.isfinite(factor) else None


def _merge(texts: list[str], weights: list[float]) -> list[Fragment]:
    merged: list[Fragment] = []
    for text, weight in zip(texts, weights, strict=True):
        if merged and merged[-1].weight == weight:
            merged[-1] = Fragment(merged[-1].text + text, weight)
        else:
            merged.append(Fragment(text, weight))
    return merged
