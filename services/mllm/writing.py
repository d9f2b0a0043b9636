"""One answer of the language model, from a conversation to text, whatever the engine is.

`write` is for generation prompts: its callers see prompt text, and what the model writes around it only in
the finished answer. `speak` is for chat: it gives the text as it comes.
"""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Protocol

from services.mllm.conversation import Turn
from services.mllm.generation_prompt import CLOSE_TAG, OPEN_TAG, Fallback, GenerationPromptParser
from services.mllm.pictures import Picture
from services.mllm.tokenization import PromptBuilder, TokenizedPrompt
from shared import metrics
from shared.contracts import GenerationPrompt
from shared.errors import PromptEmpty


@dataclass(frozen=True)
class Sampling:
    """How to sample; None means the checkpoint's own default (LLMGA.md §2).

    stop: texts that end the answer, besides the family's terminators. The default ends it with its first
    prompt, as a closed prompt cannot change any more; without any the model goes on to its end.
    keeps_stop: whether the text that ended the answer is part of it.
    opens: whether an answer that is to be a prompt is given its opening tag, with which every such answer of the
        models' training begins: its first words come that many steps sooner. The tag is no token of the answer then.
    """

    max_tokens: int
    temperature: float
    top_p: float | None = None
    seed: int | None = None
    logprobs: int | None = None
    stop: tuple[str, ...] = (CLOSE_TAG,)
    keeps_stop: bool = True
    opens: bool = False


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
        self, token_ids: list[int], sampling: Sampling, *, picture: Picture | None, request_id: str, priority: int
    ) -> AsyncGenerator[Piece, None]:
        """Yield pieces until the answer ends; closing the generator frees the request at once."""
        ...


@dataclass
class Answer:
    """Everything about one finished answer.

    text: all that the model wrote, without terminator and surrounding white space; history in this form
        is as it was in training.
    prompt_tokens: how many positions the conversation takes, those of the picture among them.
    prompts: the generation prompts in it, in order; none for an answer that was spoken.
    """

    prompt_token_ids: list[int]
    prompt_tokens: int
    dropped_turns: int
    text: str = ""
    prompts: list[GenerationPrompt] = field(default_factory=list)
    finish_reason: str = "stop"
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[dict[int, float]] = field(default_factory=list)

    @property
    def prompt(self) -> GenerationPrompt:
        """The first generation prompt."""
        return self.prompts[0]


class PromptWriter:
    """Write generation prompts, and speak, with one model.

    tells_changes: whether the model's answers to a change begin with words (`checkpoints.published.SERVING`).
    """

    def __init__(
        self,
        engine: Engine,
        builder: PromptBuilder,
        *,
        model: str,
        max_model_len: int,
        tells_changes: bool = False,
    ) -> None:
        self.tells_changes = tells_changes
        self._engine = engine
        self._builder = builder
        self._model = model
        self._max_model_len = max_model_len

    async def write(
        self,
        turns: Sequence[Turn],
        sampling: Sampling,
        *,
        picture: Picture | None = None,
        request_id: str,
        priority: int,
    ) -> AsyncGenerator[str | Answer, None]:
        """Yield the prompt's characters as they come, then the answer as a whole.

        Closing the generator ends the request in the engine. The request also ends when the prompt is closed,
        as nothing that follows can change it; not so without `CLOSE_TAG` in `sampling.stop`, which is for answers
        with several prompts. What is yielded as it comes is the first prompt.

        Raises:
            PromptTooLong: the conversation does not fit the model.
            PromptEmpty: the answer holds no prompt.
        """
        parser = GenerationPromptParser()
        pieces, answer = self._ask(turns, sampling, picture, request_id, priority)
        parser.feed(answer.text)  # the tag, if it was given
        async with aclosing(pieces):
            async for piece in pieces:
                if delta := parser.feed(piece.text):
                    yield delta
                if parser.is_complete and piece.finish_reason is None and CLOSE_TAG in sampling.stop:
                    answer.finish_reason = "stop"
                    break
        end = parser.finish()
        if end.fallback is not None:
            metrics.PROMPT_FALLBACKS.labels(rule=end.fallback).inc()
        if end.fallback is Fallback.EMPTY:
            raise PromptEmpty("The language model's answer held no prompt.")
        if end.delta:
            yield end.delta
        answer.prompts = [
            GenerationPrompt(
                text=text,
                source="mllm",
                model=self._model,
                finish_reason="length" if end.was_cut else answer.finish_reason,
                completion_tokens=len(answer.token_ids),
                fallback=end.fallback,
                dropped_turns=answer.dropped_turns or None,
            )
            for text in (end.text, *end.more)
        ]
        yield answer

    async def speak(
        self,
        turns: Sequence[Turn],
        sampling: Sampling,
        *,
        picture: Picture | None = None,
        own_system: str | None = None,
        request_id: str,
        priority: int,
    ) -> AsyncGenerator[Piece | Answer, None]:
        """Yield what the model says as it comes, then the answer as a whole, whose text the pieces make up.

        `own_system` takes the place of the family's system prompt. Closing the generator ends the request in
        the engine.

        Raises:
            PromptTooLong: the conversation does not fit the model.
        """
        stop = tuple(stop for stop in sampling.stop if stop != CLOSE_TAG)
        sampling = replace(sampling, stop=stop, keeps_stop=False, opens=False)
        pieces, answer = self._ask(turns, sampling, picture, request_id, priority, own_system)
        told = False
        space = ""  # is part of the answer only if something follows
        async with aclosing(pieces):
            async for piece in pieces:
                text = space + piece.text if told else piece.text.lstrip()
                said = text.rstrip()
                space = text[len(said) :]
                told = told or bool(said)
                yield replace(piece, text=said)
        yield answer

    def _ask(
        self,
        turns: Sequence[Turn],
        sampling: Sampling,
        picture: Picture | None,
        request_id: str,
        priority: int,
        own_system: str | None = None,
    ) -> tuple[AsyncGenerator[Piece, None], Answer]:
        """Return the engine's pieces, and an answer that has in it what was taken from them so far."""
        begun = OPEN_TAG if sampling.opens else ""
        built = self._builder.build(turns, has_image=picture is not None, own_system=own_system, begun=begun)
        sampling = replace(sampling, max_tokens=min(sampling.max_tokens, self._max_model_len - built.length))
        answer = Answer(built.token_ids, built.length, built.dropped_turns, text=begun if built.has_begun else "")
        return self._pieces(built, sampling, picture, request_id, priority, answer), answer

    async def _pieces(
        self,
        built: TokenizedPrompt,
        sampling: Sampling,
        picture: Picture | None,
        request_id: str,
        priority: int,
        answer: Answer,
    ) -> AsyncGenerator[Piece, None]:
        texts = [answer.text]
        pieces = self._engine.generate(
            built.token_ids, sampling, picture=picture, request_id=request_id, priority=priority
        )
        try:
            async with aclosing(pieces):
                async for piece in pieces:
                    texts.append(piece.text)
                    answer.token_ids += piece.token_ids
                    answer.logprobs += piece.logprobs
                    answer.finish_reason = piece.finish_reason or answer.finish_reason
                    yield piece
        finally:
            answer.text = "".join(texts).strip()
            metrics.PROMPT_TOKENS.inc(len(answer.token_ids))
