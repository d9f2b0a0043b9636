"""One answer of the language model, from a conversation to the generation prompt, whatever the engine is.

Clients see prompt text and nothing else: what the model writes around it never leaves this module.
"""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Protocol

from services.mllm.conversation import Turn
from services.mllm.generation_prompt import CLOSE_TAG, Fallback, GenerationPromptParser
from services.mllm.tokenization import PromptBuilder
from shared import metrics
from shared.contracts import GenerationPrompt
from shared.errors import PromptEmpty


@dataclass(frozen=True)
class Sampling:
    """How to sample; None means the checkpoint's own default (LLMGA.md §2)."""

    max_tokens: int
    temperature: float
    top_p: float | None = None
    seed: int | None = None
    logprobs: int | None = None
    stop: str | None = CLOSE_TAG  # a closed prompt cannot change any more


@dataclass(frozen=True)
class Piece:
    """What the model wrote since the last piece. `logprobs`: per token, the ids asked for with their
    values."""

    text: str
    token_ids: Sequence[int]
    finish_reason: str | None = None
    logprobs: Sequence[dict[int, float]] = ()


class Engine(Protocol):
    """What writes: vLLM."""

    def generate(
        self, token_ids: list[int], sampling: Sampling, *, request_id: str, priority: int
    ) -> AsyncGenerator[Piece, None]:
        """Yield pieces until the answer ends; closing the generator frees the request at once."""
        ...


@dataclass
class Answer:
    """Everything about one finished answer."""

    prompt: GenerationPrompt
    prompt_token_ids: list[int]
    dropped_turns: int
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[dict[int, float]] = field(default_factory=list)


class PromptWriter:
    """Write generation prompts with one model."""

    def __init__(self, engine: Engine, builder: PromptBuilder, *, model: str, max_model_len: int) -> None:
        self._engine = engine
        self._builder = builder
        self._model = model
        self._max_model_len = max_model_len

    async def write(
        self, turns: Sequence[Turn], sampling: Sampling, *, request_id: str, priority: int
    ) -> AsyncGenerator[str | Answer, None]:
        """Yield the prompt's characters as they come, then the answer as a whole.

        Closing the generator ends the request in the engine. The request also ends when the prompt is closed,
        as nothing that follows can change it.

        Raises:
            PromptTooLong: the conversation does not fit the model.
            PromptEmpty: the answer holds no prompt.
        """
        built = self._builder.build(turns)
        room = self._max_model_len - built.length
        sampling = Sampling(**{**vars(sampling), "max_tokens": min(sampling.max_tokens, room)})
        parser = GenerationPromptParser()
        token_ids: list[int] = []
        logprobs: list[dict[int, float]] = []
        finish_reason = "stop"
        pieces = self._engine.generate(built.token_ids, sampling, request_id=request_id, priority=priority)
        async with aclosing(pieces):
            async for piece in pieces:
                token_ids += piece.token_ids
                logprobs += piece.logprobs
                delta = parser.feed(piece.text)
                if delta:
                    yield delta
                finish_reason = piece.finish_reason or finish_reason
                if parser.is_complete and piece.finish_reason is None:
                    break
        metrics.PROMPT_TOKENS.inc(len(token_ids))
        end = parser.finish()
        if end.fallback is not None:
            metrics.PROMPT_FALLBACKS.labels(rule=end.fallback).inc()
        if end.fallback is Fallback.EMPTY:
            raise PromptEmpty("The language model's answer held no prompt.")
        if end.delta:
            yield end.delta
        yield Answer(
            prompt=GenerationPrompt(
                text=end.text,
                source="mllm",
                model=self._model,
                finish_reason="length" if end.was_cut else finish_reason,
                completion_tokens=len(token_ids),
                fallback=end.fallback,
            ),
            prompt_token_ids=built.token_ids,
            dropped_turns=built.dropped_turns,
            token_ids=token_ids,
            logprobs=logprobs,
        )
