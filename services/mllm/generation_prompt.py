"""The generation-prompt protocol: from the language model's answer to the prompt that the diffusion model
gets.

The model writes `<gen_image> a long description </gen_image>` as ordinary text (LLMGA.md §3). The parser is
incremental (text comes in deltas that may end anywhere), total (any text gives a result, none an error) and
strict (only the exact tags count). Its result never depends on how the text was cut into deltas.

What the parser lets through is clean: one line, single spaces, no control or invisible characters, and none
of the signs that a renderer would take for syntax (LLMGA.md §5.1): of `(red:1.3) [fox]` the words stay. What
the model wrote is untrusted; it describes, it does not command.

Rules, where an answer is not one proper pair of tags:

| answer | prompt |
|---|---|
| several pairs | the first that is not empty; the others are kept beside it |
| a second opening tag before the closing one | is left out; the first closing tag ends the prompt |
| a closing tag before any opening one, a pair later | the pair |
| opened, never closed | everything after the tag (`unclosed`) |
| closed, never opened | everything before the tag (`unopened`) |
| no tag, or only empty pairs | the whole answer without tags (`answer`) |
| nothing left | empty (`empty`): the caller decides what that means for its task |
"""

import re
import unicodedata
from dataclasses import dataclass, replace
from enum import StrEnum

OPEN_TAG = "<gen_image>"
CLOSE_TAG = "</gen_image>"
MAX_PROMPT_CHARS = 8_000  # the bound of instructions and edited prompts
MAX_PROMPTS = 16  # of one answer; a picture book has fewer

# `<lora:name:0.8>` and its like: taken out whole. The bounds keep what has to be held back short.
_DIRECTIVE = re.compile(r"<[A-Za-z]{1,16}:[^<>\n]{0,100}>")
_DIRECTIVE_START = re.compile(r"<(?:[A-Za-z]{0,16}|[A-Za-z]{1,16}:[^<>\n]{0,100})")
# The number of a weight, up to its bracket; `(at 10:30)` is none.
_WEIGHT = re.compile(r":[+-]?[0-9.]{1,8}(?=[)\]}])")
_WEIGHT_START = re.compile(r":[+-]?[0-9.]{0,8}")
_UNDECIDED = re.compile(r"[<:]")
# Brackets of weights `(x:1.2)`, `[x]` and choices `{x|y}`, their escape, and what is left of tags.
_SYNTAX = frozenset("()[]{}<>\\")
# Control, format (invisible), surrogate and private-use characters.
_INVISIBLE = frozenset({"Cc", "Cf", "Cs", "Co"})


class Fallback(StrEnum):
    """Which rule made the prompt where there was no proper pair of tags."""

    UNCLOSED = "unclosed"
    UNOPENED = "unopened"
    ANSWER = "answer"
    EMPTY = "empty"


@dataclass(frozen=True)
class Parsed:
    """The end of an answer.

    delta: prompt characters that come on top of those which `feed` returned.
    text: the whole prompt.
    more: the prompts of further pairs; the last may be cut off.
    """

    delta: str
    text: str
    fallback: Fallback | None
    was_cut: bool
    more: tuple[str, ...] = ()


class _Cleaner:
    """Make one clean line of what is written, and give it out as soon as it is certain."""

    def __init__(self) -> None:
        self.text = ""
        self.was_cut = False
        self._space = False

    def write(self, text: str) -> str:
        """Add text; return the new clean characters."""
        clean: list[str] = []
        length = len(self.text)
        for sign in text:
            if sign.isspace() or sign in _SYNTAX:
                self._space = True
                continue
            if unicodedata.category(sign) in _INVISIBLE:
                continue
            space = " " if self._space and length else ""
            if length + len(space) + 1 > MAX_PROMPT_CHARS:
                self.was_cut = True
                break
            self._space = False
            clean.append(space + sign)
            length += len(space) + 1
        added = "".join(clean)
        self.text += added
        return added


class GenerationPromptParser:
    """Parse one answer: `feed` each delta, then `finish` once.

    Deltas are those of the first prompt; further ones are there at the end.
    """

    def __init__(self) -> None:
        self._held = ""  # a piece that may become a tag, a directive or a weight
        self._before = ""  # the character before what is held
        self._closed: list[_Cleaner] = []
        self._inside: _Cleaner | None = None  # the prompt that is open
        self._outside = _Cleaner()
        self._before_close: str | None = None

    @property
    def is_complete(self) -> bool:
        """Whether the first prompt is closed: nothing that follows can change it."""
        return bool(self._closed)

    def feed(self, text: str) -> str:
        """Take the next characters of the answer; return the next characters of the prompt."""
        return self._scan(self._held + text)

    def finish(self) -> Parsed:
        """Take the end of the answer; return what is left of the prompt, and how it came about."""
        delta = ""
        held, self._held = self._held, ""
        # A tag that the end cut off is dropped; any other piece is text.
        if held and not any(len(held) > 1 and tag.startswith(held) for tag in (OPEN_TAG, CLOSE_TAG)):
            delta = self._write(held)
        prompts = [*self._closed, *([self._inside] if self._inside and self._inside.text else [])]
        if prompts:
            return Parsed(
                delta,
                prompts[0].text,
                None if self._closed else Fallback.UNCLOSED,
                any(prompt.was_cut for prompt in prompts),
                tuple(prompt.text for prompt in prompts[1:]),
            )
        if self._before_close:
            return Parsed(self._before_close, self._before_close, Fallback.UNOPENED, self._outside.was_cut)
        text = self._outside.text
        return Parsed(text, text, Fallback.ANSWER if text else Fallback.EMPTY, self._outside.was_cut)

    def _scan(self, text: str) -> str:
        """Consume all of the text but a tail that is undecided, which is held back."""
        prompt = ""
        self._held = ""
        position = 0
        while position < len(text):
            sign = _UNDECIDED.search(text, position)
            if sign is None:
                prompt += self._write(text[position:])
                self._before = text[-1]
                return prompt
            start = sign.start()
            prompt += self._write(text[position:start])
            if start:
                self._before = text[start - 1]
            length = self._weight_at(text, start) if sign[0] == ":" else self._bracket_at(text, start)
            if length is None:
                self._held = text[start:]
                return prompt
            if length == 0:
                prompt += self._write(sign[0])
                length = 1
            position = start + length
            self._before = text[position - 1]
        return prompt

    def _bracket_at(self, text: str, start: int) -> int | None:
        """Return the length of the tag or directive at `<`, which has taken effect; 0: none; None: undecided."""
        rest = text[start:]
        if rest.startswith(OPEN_TAG):
            self._open()
            return len(OPEN_TAG)
        if rest.startswith(CLOSE_TAG):
            self._close()
            return len(CLOSE_TAG)
        if OPEN_TAG.startswith(rest) or CLOSE_TAG.startswith(rest) or _DIRECTIVE_START.fullmatch(rest):
            return None
        directive = _DIRECTIVE.match(rest)
        if directive is None:
            return 0
        self._write(" ")  # what it was between stays apart
        return directive.end()

    def _weight_at(self, text: str, start: int) -> int | None:
        """Return the length of the weight's number at `:`; 0: none; None: undecided."""
        if self._before.isdigit():
            return 0
        if weight := _WEIGHT.match(text, start):
            return weight.end() - start
        return None if _WEIGHT_START.fullmatch(text, start) else 0

    def _open(self) -> None:
        if self._inside is not None:
            self._inside.write(" ")
        elif len(self._closed) < MAX_PROMPTS:
            self._inside = _Cleaner()
            self._outside.write(" ")

    def _close(self) -> None:
        if self._inside is not None:
            if self._inside.text:
                self._closed.append(self._inside)
            self._inside = None
        elif self._before_close is None:
            self._before_close = self._outside.text
            self._outside.write(" ")

    def _write(self, text: str) -> str:
        """Write text where it belongs; return what the first prompt has got by it."""
        if self._inside is None:
            if not self._closed:
                self._outside.write(text)
            return ""
        added = self._inside.write(text)
        return "" if self._closed else added


def parse(answer: str) -> Parsed:
    """Parse a whole answer at once; `delta` is the whole prompt."""
    parser = GenerationPromptParser()
    delta = parser.feed(answer)
    end = parser.finish()
    return replace(end, delta=delta + end.delta)
