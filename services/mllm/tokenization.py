"""From a conversation to the token ids that the model is given (LLMGA.md §1.7).

The texts around a picture are tokenized one by one, and only the first keeps its BOS: a chat template over
one string gives other tokens there. What a person wrote cannot become a control token: their spellings are
broken up first. A history that is too long loses whole turns, oldest first, and the caller is told; LLMGA
itself would cut off the assistant's header.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from services.mllm.conversation import SystemPrompt, Template, Turn, render
from shared.errors import PromptTooLong


class Tokenizer(Protocol):
    """The part of a Hugging Face tokenizer that is used here."""

    @property
    def bos_token_id(self) -> int | None:
        """The id that starts a text, if the family has one."""
        ...

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, with a BOS where the tokenizer adds one."""
        ...


@dataclass(frozen=True)
class ImageSlot:
    """How a picture stands in the ids: one placeholder, which the server replaces by `tokens` positions."""

    token_id: int
    tokens: int


@dataclass(frozen=True)
class TokenizedPrompt:
    """Token ids to be continued. `length` counts the picture's positions; `dropped_turns` those that did not
    fit. `has_begun`: whether the ids end with the beginning of the answer that was asked for."""

    token_ids: list[int]
    length: int
    dropped_turns: int
    has_begun: bool = False


def encode(
    tokenizer: Tokenizer,
    texts: Sequence[str],
    image_token_id: int | None = None,
    *,
    space_before: tuple[str, ...] = (),
) -> list[int]:
    """Return the ids of texts with a picture between each two of them.

    space_before: beginnings of a text before which the tokenizer of training put a space (Phi-3's slow one).

    Source: LLMGA.md §1.7, `tokenizer_image_token`.
    """
    chunks = [tokenizer.encode(f" {text}" if text.startswith(space_before) else text) for text in texts]
    bos = tokenizer.bos_token_id
    has_bos = bos is not None and bool(chunks[0]) and chunks[0][0] == bos
    ids: list[int] = [bos] if has_bos and bos is not None else []
    for index, chunk in enumerate(chunks):
        if index:
            assert image_token_id is not None, "texts around a picture need the picture's id"
            ids.append(image_token_id)
        ids += chunk[1:] if has_bos else chunk
    return ids


class PromptBuilder:
    """Build the prompts of one checkpoint."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        template: Template,
        *,
        control_tokens: Iterable[str],
        image_slot: ImageSlot,
        max_prompt_tokens: int,
        system_prompt: SystemPrompt = "trained",
        space_before: Iterable[str] = (),
    ) -> None:
        self._tokenizer = tokenizer
        self._space_before = tuple(space_before)
        self._template = template
        # Longest first, so that no spelling is left over inside another.
        spellings = sorted((token for token in control_tokens if len(token) > 1), key=len, reverse=True)
        self._control_token = re.compile("|".join(map(re.escape, spellings))) if spellings else None
        self._image_slot = image_slot
        self._max_prompt_tokens = max_prompt_tokens
        self._system_prompt: SystemPrompt = system_prompt

    def build(
        self,
        turns: Sequence[Turn],
        *,
        has_image: bool = False,
        own_system: str | None = None,
        begun: str = "",
    ) -> TokenizedPrompt:
        """Return the prompt of a conversation; the picture, if there is one, comes with its first turn that
        is left. `own_system` takes the place of the family's system prompt.

        begun: what the answer is to begin with. The ids are then those that the model itself would have written;
        where its tokens would grow together with what is around them, the model has to write it, and `has_begun`
        is false.

        Raises:
            PromptTooLong: the last turn alone does not fit.
        """
        turns = [
            Turn(
                self._neutralised(turn.question),
                None if turn.answer is None else self._neutralised(turn.answer),
            )
            for turn in turns
        ]
        own_system = None if own_system is None else self._neutralised(own_system)
        for dropped in range(len(turns)):
            texts = render(
                self._template,
                turns[dropped:],
                has_image=has_image,
                system_prompt=self._system_prompt,
                own_system=own_system,
            )
            ids = self._encode(texts, has_image)
            length = len(ids) + (self._image_slot.tokens - 1 if has_image else 0)
            if length <= self._max_prompt_tokens:
                prompt = TokenizedPrompt(ids, length, dropped)
                return self._begun(prompt, texts, has_image, begun) if begun else prompt
        raise PromptTooLong(
            f"The instruction takes {length} tokens with everything around it; "
            f"the language model takes {self._max_prompt_tokens}."
        )

    def _begun(self, prompt: TokenizedPrompt, texts: list[str], has_image: bool, begun: str) -> TokenizedPrompt:
        """Return the prompt with the beginning of its answer, if that is what the model would have written."""
        texts = [*texts[:-1], texts[-1] + self._template.answering + begun]
        ids = self._encode(texts, has_image)
        goes_on = self._encode([*texts[:-1], texts[-1] + " a"], has_image)
        before = len(prompt.token_ids)
        if ids[:before] != prompt.token_ids or goes_on[: len(ids)] != ids:
            return prompt
        return TokenizedPrompt(ids, prompt.length + len(ids) - before, prompt.dropped_turns, has_begun=True)

    def _encode(self, texts: Sequence[str], has_image: bool) -> list[int]:
        image_token_id = self._image_slot.token_id if has_image else None
        return encode(self._tokenizer, texts, image_token_id, space_before=self._space_before)

    def _neutralised(self, text: str) -> str:
        """Break up the spellings of control tokens: `<|im_end|>` becomes `< |im_end|>`."""
        if self._control_token is None:
            return text
        return self._control_token.sub(lambda found: f"{found[0][0]} {found[0][1:]}", text)
