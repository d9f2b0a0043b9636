"""`POST /v1/generation-prompts`: the language model without the queue, for those who check a deployment.

JSON, or with `Accept: text/event-stream` the events `prompt.delta`, `prompt.completed` and, when it goes
wrong after the first byte, `error`. Problems are RFC 9457 throughout. A client that leaves ends its request
in vLLM.
"""

import asyncio
import json
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from typing import Any, Literal

from pydantic import BaseModel, Field, ValidationError
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse

from services.mllm.incoming import read_json, unless_gone
from services.mllm.prompt_request import PromptRequest
from services.mllm.tasks import Work, Written, carry_out
from services.mllm.writing import PromptWriter, Sampling
from shared.contracts import GenerationPrompt
from shared.errors import InternalError, LLMGAError
from shared.settings import MLLMSettings
from shared.validation import validation_problem

PATH = "/v1/generation-prompts"
MAX_BODY_BYTES = 32 * 1024 * 1024  # a picture of 16 MiB in base64, a mask, and the words
DIRECT_PRIORITY = 0  # as interactive jobs
EVENT_STREAM = "text/event-stream"
DECODED_AT_ONCE = 2  # pictures

Parts = AsyncGenerator[str | Written, None]


class PromptResponse(BaseModel):
    """What was written, and what was asked for beside it."""

    id: str
    object: Literal["generation_prompt"] = "generation_prompt"
    prompt: GenerationPrompt | None = Field(default=None, description="Absent from an answer in words.")
    prompts: list[GenerationPrompt] = Field(description="All prompts of the answer; `prompt` is the first.")
    source: GenerationPrompt | None = Field(default=None, description="Of an edit: the picture as it was.")
    text: str = Field(description="The answer as the model wrote it; in this form it goes into `history`.")
    dropped_turns: int = Field(description="Turns of the history, oldest first, that did not fit the model.")
    prompt_token_ids: list[int] | None = None
    token_ids: list[int] | None = None
    logprobs: list[dict[int, float]] | None = Field(
        default=None, description="Per generated token: ids and natural log-probabilities before sampling rules."
    )


class PromptEndpoint:
    """The route's handler."""

    def __init__(self, writer: Callable[[], PromptWriter], settings: MLLMSettings) -> None:
        self._writer = writer
        self._settings = settings
        self._decoding = asyncio.Semaphore(DECODED_AT_ONCE)

    async def answer(self, request: Request) -> Response:
        """Answer one call."""
        request_id = f"prompt-{uuid.uuid4().hex}"
        try:
            wanted = _parse(await read_json(request, max_bytes=MAX_BODY_BYTES))
            async with self._decoding:
                work = await asyncio.to_thread(wanted.work)
            parts = self._carry_out(wanted, work, request_id)
            if EVENT_STREAM in request.headers.get("accept", ""):
                # The first part decides between a problem and a stream.
                first = await unless_gone(request, anext(parts))
                return StreamingResponse(
                    _events(first, parts, wanted, request_id),
                    media_type=EVENT_STREAM,
                    headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
                )
            written = await unless_gone(request, _last(parts))
            return Response(_response(written, wanted, request_id), media_type="application/json")
        except ClientDisconnect:
            return Response(status_code=499)  # nobody is there to read it
        except LLMGAError as error:
            return _problem(error, request_id)

    def _carry_out(self, wanted: PromptRequest, work: Work, request_id: str) -> Parts:
        settings = self._settings
        sampling = Sampling(
            max_tokens=wanted.max_tokens or settings.max_tokens,
            temperature=settings.temperature if wanted.temperature is None else wanted.temperature,
            top_p=wanted.top_p,
            seed=wanted.seed,
            logprobs=wanted.logprobs,
            # Who looks at the model's probabilities sees those of the tag, too.
            opens=settings.opening_tag == "given" and wanted.logprobs is None,
        )
        return carry_out(self._writer(), work, sampling, request_id=request_id, priority=DIRECT_PRIORITY)


def _parse(value: Any) -> PromptRequest:
    try:
        return PromptRequest.model_validate(value)
    except ValidationError as error:
        raise validation_problem(error, PromptRequest) from None


async def _last(parts: Parts) -> Written:
    async with aclosing(parts):
        async for part in parts:
            if isinstance(part, Written):
                return part
    raise InternalError("The language model gave no answer.")


async def _events(first: str | Written, parts: Parts, wanted: PromptRequest, request_id: str) -> AsyncIterator[bytes]:
    async with aclosing(parts):
        yield _event_of(first, wanted, request_id)
        try:
            async for part in parts:
                yield _event_of(part, wanted, request_id)
        except LLMGAError as error:
            yield _event("error", error.to_problem(request_id).model_dump_json(exclude_none=True))


def _event_of(part: str | Written, wanted: PromptRequest, request_id: str) -> bytes:
    if isinstance(part, Written):
        return _event("prompt.completed", _response(part, wanted, request_id))
    return _event("prompt.delta", json.dumps({"text": part}, ensure_ascii=False))


def _event(name: str, data: str) -> bytes:
    return f"event: {name}\ndata: {data}\n\n".encode()


def _response(written: Written, wanted: PromptRequest, request_id: str) -> str:
    answer = written.answer
    return PromptResponse(
        id=request_id,
        prompt=answer.prompts[0] if answer.prompts else None,
        prompts=answer.prompts,
        source=written.source,
        text=answer.text,
        dropped_turns=answer.dropped_turns,
        prompt_token_ids=answer.prompt_token_ids if wanted.return_token_ids else None,
        token_ids=answer.token_ids if wanted.return_token_ids else None,
        logprobs=answer.logprobs if wanted.logprobs is not None else None,
    ).model_dump_json(exclude_none=True)


def _problem(error: LLMGAError, request_id: str) -> Response:
    body = error.to_problem(request_id).model_dump_json(exclude_none=True)
    return Response(body, status_code=error.status, media_type="application/problem+json")
