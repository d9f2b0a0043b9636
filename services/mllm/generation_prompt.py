"""The generation-prompt protocol: from the language model's answer to the prompt that the diffusion model
gets.

The model writes `<gen_image> a long description </gen_image>` as ordinary text (LLMGA.md §3). The parser is
incremental (text comes in deltas that may end anywhere), total (any text gives a result, none an error) and
strict (only the exact tags count). Its result never depends on how the text was cut into deltas.

What the parser lets through is clean: one line, single spaces, no control or invisible characters, and none
of the signs that a renderer would take for syntax (LLMGA.md §5.1). What the model wrote is untrusted; it
describes, it does not command.

Rules, where an answer is not one proper pair of tags:

| answer | prompt |
|---|---|
| several pairs | the first that is not empty |
| a second opening tag before the closing one | is left out; the first closing tag ends the prompt |
| a closing tag before any opening one, a pair later | the pair |
| opened, never closed | everything after the tag (`unclosed`) |
| closed, never opened | everything before the tag (`unopened`) |
| no tag, or only empty pairs | the whole answer without tags (`answer`) |
| nothing left | empty (`empty`): the caller decides what that means for its task |
"""

import re
import unicodedata
from dataclasses import dataclass
from enum import Enum, StrEnum

OPEN_TAG = "<gen_image>"
CLOSE_TAG = "</gen_image>"
MAX_PROMPT_CHARS = 8_000  # the bound of instructions and edited prompts

# `<lora:name:0.8>` and its like: taken out whole. The bounds keep what has to be held back short.
_DIRECTIVE = re.compile(r"<[A-Za-z]{1,16}:[^<>\n]{0,100}>")
_DIRECTIVE_START = re.compile(r"<(?:[A-Za-z]{0,16}|[A-Za-z]{1,16}:[^<>\n]{0,100})")
# Weights `(x:1.2)`, `[x]` and their escape, in every pair of signs that renderers know; and what is left of
# tags.
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
    """

    delta: str
    text: str
    fallback: Fallback | None
    was_cut: bool


class _State(Enum):
    OUTSIDE = 1
    INSIDE = 2
    DONE = 3


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
    """Parse one answer: `feed` each delta, then `finish` once."""

    def __init__(self) -> None:
        self._state = _State.OUTSIDE
        self._held = ""  # a piece that may become a tag or a directive
        self._prompt = _Cleaner()
        self._outside = _Cleaner()
        self._before_close: str | None = None

    @property
    def is_complete(self) -> bool:
        """Whether the prompt is closed: nothing that follows can change it."""
        return self._state is _State.DONE

    def feed(self, text: str) -> str:
        """Take the next characters of the answer; return the next characters of the prompt."""
        if self._state is _State.DONE:
            return ""
        return self._scan(self._held + text)

    def finish(self) -> Parsed:
        """Take the end of the answer; return what is left of the prompt, and how it came about."""
        delta = ""
        held, self._held = self._held, ""
        # A tag that the end cut off is dropped; any other piece is text.
        if held and not any(len(held) > 1 and tag.startswith(held) for tag in (OPEN_TAG, CLOSE_TAG)):
            delta = self._write(held)
        if self._state is _State.DONE:
            return Parsed("", self._prompt.text, None, self._prompt.was_cut)
        if self._prompt.text:
            return Parsed(delta, self._prompt.text, Fallback.UNCLOSED, self._prompt.was_cut)
        if self._before_close:
            return Parsed(self._before_close, self._before_close, Fallback.UNOPENED, self._outside.was_cut)
        text = self._outside.text
        return Parsed(text, text, Fallback.ANSWER if text else Fallback.EMPTY, self._outside.was_cut)

    def _scan(self, text: str) -> str:
        """Consume all of the text but a tail that is undecided, which is held back."""
        prompt = ""
        self._held = ""
        position = 0
        while position < len(text) and self._state is not _State.DONE:
            bracket = text.find("<", position)
            if bracket < 0:
                return prompt + self._write(text[position:])
            prompt += self._write(text[position:bracket])
            rest = text[bracket:]
            if rest.startswith(OPEN_TAG):
                self._open()
                position = bracket + len(OPEN_TAG)
            elif rest.startswith(CLOSE_TAG):
                self._close()
                position = bracket + len(CLOSE_TAG)
            elif OPEN_TAG.startswith(rest) or CLOSE_TAG.startswith(rest) or _DIRECTIVE_START.fullmatch(rest):
                self._held = rest
                return prompt
            elif directive := _DIRECTIVE.match(rest):
                prompt += self._write(" ")
                position = bracket + directive.end()
            else:
                prompt += self._write("<")
                position = bracket + 1
        return prompt

    def _open(self) -> None:
        if self._state is _State.OUTSIDE:
            self._state = _State.INSIDE
            self._outside.write(" ")
        else:
            self._prompt.write(" ")

    def _close(self) -> None:
        if self._state is _State.INSIDE:
            self._state = _State.DONE if self._prompt.text else _State.OUTSIDE
        elif self._before_close is None:
            self._before_close = self._outside.text
            self._outside.write(" ")

    def _write(self, text: str) -> str:
        if self._state is _State.INSIDE:
            return self._prompt.write(text)
        self._outside.write(text)
        return ""


def parse(answer: str) -> Parsed:
    """Parse a whole answer at once; `delta` is the whole prompt."""
    parser = GenerationPromptParser()
    delta = parser.feed(answer)
    end = parser.finish()
    return Parsed(delta + end.delta, end.text, end.fallback, end.was_cut)
