"""`POST /v1/chat/completions` for chat clients: OpenAI's shapes around the family's own template.

The conversation is put together from token ids, as everywhere in this service; no chat template is rendered.
Refusals come in OpenAI's error envelope, with statuses as OpenAI has them. A client that leaves ends its
request in vLLM. The end of an answer tells the generation prompts in it, if any, in a member of our own.
"""

import asyncio
import json
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Sequence
from contextlib import aclosing
from typing import Any, Protocol

from pydantic import ValidationError
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from services.mllm.chat_request import Conversation, conversation_of
from services.mllm.generation_prompt import parse
from services.mllm.incoming import read_json, unless_gone
from services.mllm.pictures import Picture, picture_of
from services.mllm.writing import Answer, Piece, PromptWriter, Sampling
from shared.contracts import OpenAIErrorEnvelope, openai_status
from shared.contracts.chat import ChatRequest
from shared.errors import InternalError, LLMGAError, ModelNotServed
from shared.media import decode_image
from shared.settings import MLLMSettings
from shared.validation import validation_problem

PATH = "/v1/chat/completions"
MAX_BODY_BYTES = 25 * 1024 * 1024  # one picture of 16 MiB in base64, and the words
DIRECT_PRIORITY = 0  # as interactive jobs

Parts = AsyncGenerator[Piece | Answer, None]


class Tokenizer(Protocol):
    """The part of a Hugging Face tokenizer that is used here."""

    @property
    def added_tokens_decoder(self) -> dict[int, Any]:
        """The tokens that no text is split into, by id."""
        ...

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Return the ids of a text."""
        ...

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool) -> str:
        """Return the text of ids."""
        ...


class TokenTexts:
    """The text of single tokens, with the space that some begin with."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.control_ids: Collection[int] = frozenset(tokenizer.added_tokens_decoder)
        # At the beginning of a text decoders drop the space, so that each token is decoded after another one.
        self._before = tokenizer.encode("a", add_special_tokens=False)
        self._skipped = len(self._decoded([]))
        self._known: dict[int, str] = {}

    def __getitem__(self, token_id: int) -> str:
        """Return a token's text; U+FFFD stands for a part of a character."""
        if token_id not in self._known:
            self._known[token_id] = self._decoded([token_id])[self._skipped :]
        return self._known[token_id]

    def _decoded(self, token_ids: list[int]) -> str:
        return self._tokenizer.decode([*self._before, *token_ids], skip_special_tokens=False)


class ChatEndpoint:
    """The route's handler."""

    def __init__(
        self,
        writer: Callable[[], PromptWriter],
        texts: Callable[[], TokenTexts],
        settings: MLLMSettings,
        *,
        model: str,
    ) -> None:
        self._writer = writer
        self._texts = texts
        self._settings = settings
        self._model = model

    async def answer(self, request: Request) -> Response:
        """Answer one call."""
        completion = _Completion(f"chatcmpl-{uuid.uuid4().hex}", int(time.time()), self._model, self._texts)
        try:
            wanted = _parse(await read_json(request, max_bytes=MAX_BODY_BYTES))
            if wanted.model != self._model:
                raise ModelNotServed(f"There is no model {wanted.model!r} here.", served_models=[self._model])
            conversation, picture = await asyncio.to_thread(_understood, wanted)
            parts = self._speak(wanted, conversation, picture, completion.id)
            if not wanted.stream:
                pieces, answer = await unless_gone(request, _whole(parts))
                return JSONResponse(completion.whole(pieces, answer, wanted))
            # The first part decides between a refusal and a stream.
            first = await unless_gone(request, anext(parts))
            return StreamingResponse(
                completion.events(first, parts, wanted),
                media_type="text/event-stream",
                headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
            )
        except ClientDisconnect:
            return Response(status_code=499)  # nobody is there to read it
        except LLMGAError as error:
            return JSONResponse(_envelope(error), status_code=openai_status(error.to_problem()))

    def _speak(
        self, wanted: ChatRequest, conversation: Conversation, picture: Picture | None, request_id: str
    ) -> Parts:
        settings = self._settings
        sampling = Sampling(
            max_tokens=wanted.max_completion_tokens or wanted.max_tokens or settings.max_tokens,
            temperature=settings.temperature if wanted.temperature is None else wanted.temperature,
            top_p=wanted.top_p,
            seed=wanted.seed,
            logprobs=wanted.asked_logprobs,
            stop=wanted.stops,
        )
        return self._writer().speak(
            conversation.turns,
            sampling,
            picture=picture,
            own_system=conversation.system,
            request_id=request_id,
            priority=DIRECT_PRIORITY,
        )


class _Completion:
    """The shapes of one answer."""

    def __init__(self, id: str, created_s: int, model: str, texts: Callable[[], TokenTexts]) -> None:
        self.id = id
        self._texts = texts
        self._head = {"id": id, "created": created_s, "model": model}

    def whole(self, pieces: Sequence[Piece], answer: Answer, wanted: ChatRequest) -> dict[str, Any]:
        """Return a `chat.completion`."""
        message = {"role": "assistant", "content": answer.text, "refusal": None}
        logprobs = None
        if wanted.logprobs:
            logprobs = {"content": [entry for piece in pieces for entry in self._entries(piece, wanted)]}
        choice = {"index": 0, "message": message, "logprobs": logprobs, "finish_reason": _finish_reason(answer)}
        body = {**self._head, "object": "chat.completion", "choices": [choice], "usage": _usage(answer)}
        return body | _generation_prompts(answer)

    async def events(self, first: Piece | Answer, parts: Parts, wanted: ChatRequest) -> AsyncIterator[bytes]:
        """Yield the `chat.completion.chunk`s, with `[DONE]` after the last."""
        async with aclosing(parts):
            yield self._chunk({"role": "assistant", "content": ""})
            try:
                yield self._told(first, wanted)
                async for part in parts:
                    yield self._told(part, wanted)
            except LLMGAError as error:
                yield _event(_envelope(error))
        yield b"data: [DONE]\n\n"

    def _told(self, part: Piece | Answer, wanted: ChatRequest) -> bytes:
        if isinstance(part, Answer):
            end = self._chunk({}, finish_reason=_finish_reason(part), more=_generation_prompts(part))
            if wanted.stream_options is None or not wanted.stream_options.include_usage:
                return end
            return end + _event({**self._head, "object": "chat.completion.chunk", "choices": [], "usage": _usage(part)})
        entries = self._entries(part, wanted) if wanted.logprobs else []
        if not part.text and not entries:
            return b""
        return self._chunk({"content": part.text}, logprobs={"content": entries} if wanted.logprobs else None)

    def _chunk(
        self,
        delta: dict[str, Any],
        *,
        logprobs: dict[str, Any] | None = None,
        finish_reason: str | None = None,
        more: dict[str, Any] | None = None,
    ) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
        return _event({**self._head, "object": "chat.completion.chunk", "choices": [choice], **(more or {})})

    def _entries(self, piece: Piece, wanted: ChatRequest) -> list[dict[str, Any]]:
        """Return the log-probabilities of a piece, without the terminator's."""
        texts = self._texts()
        entries = []
        for index, (token_id, values) in enumerate(zip(piece.token_ids, piece.logprobs, strict=False)):
            is_last = index == len(piece.token_ids) - 1
            if is_last and piece.finish_reason == "stop" and token_id in texts.control_ids:
                break
            # The chosen token comes on top of those asked for.
            best = sorted(values.items(), key=lambda item: -item[1])[: wanted.top_logprobs or 0]
            entries.append(
                {
                    **_entry(texts[token_id], values[token_id]),
                    "top_logprobs": [_entry(texts[other], value) for other, value in best],
                }
            )
        return entries


def _entry(text: str, value: float) -> dict[str, Any]:
    is_whole = "\ufffd" not in text
    # JSON has no infinities; this is OpenAI's own word for "practically never".
    return {"token": text, "logprob": max(value, -9999.0), "bytes": list(text.encode()) if is_whole else None}


def _parse(value: Any) -> ChatRequest:
    try:
        return ChatRequest.model_validate(value)
    except ValidationError as error:
        raise validation_problem(error, ChatRequest) from None


def _understood(wanted: ChatRequest) -> tuple[Conversation, Picture | None]:
    conversation = conversation_of(wanted.messages)
    return conversation, None if conversation.picture is None else picture_of(decode_image(conversation.picture))


async def _whole(parts: Parts) -> tuple[list[Piece], Answer]:
    pieces: list[Piece] = []
    async with aclosing(parts):
        async for part in parts:
            if isinstance(part, Answer):
                return pieces, part
            pieces.append(part)
    raise InternalError("The language model gave no answer.")


def _finish_reason(answer: Answer) -> str:
    return "length" if answer.finish_reason == "length" else "stop"


def _usage(answer: Answer) -> dict[str, int]:
    said = len(answer.token_ids)
    return {
        "prompt_tokens": answer.prompt_tokens,
        "completion_tokens": said,
        "total_tokens": answer.prompt_tokens + said,
    }


def _generation_prompts(answer: Answer) -> dict[str, list[str]]:
    """Return the member that tells the generation prompts of an answer; none for one in words alone."""
    parsed = parse(answer.text)
    return {"generation_prompts": [parsed.text, *parsed.more]} if parsed.fallback is None else {}


def _event(value: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n".encode()


def _envelope(error: LLMGAError) -> dict[str, Any]:
    return OpenAIErrorEnvelope.of(error.to_problem()).model_dump()
