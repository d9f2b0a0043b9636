"""`POST /v1/generation-prompts`: the writer without the queue, for those who measure or check a deployment.

JSON, or with `Accept: text/event-stream` the events `prompt.delta`, `prompt.completed` and, when it goes
wrong after the first byte, `error`. Problems are RFC 9457 throughout. A client that leaves ends its request
in vLLM.
"""

import asyncio
import json
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Annotated, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse

from services.mllm.conversation import Turn
from services.mllm.instructions import question
from services.mllm.launch import MAX_LOGPROBS
from services.mllm.writing import Answer, PromptWriter, Sampling
from shared.contracts import FieldProblem, GenerationPrompt, GenerationRequest, Task
from shared.contracts.generation import MAX_INSTRUCTION_CHARS, MAX_SEED, Finite
from shared.errors import (
    BodyTooLarge,
    InternalError,
    InvalidRequest,
    LLMGAError,
    MalformedJSON,
    UnsupportedMediaType,
)
from shared.settings import MLLMSettings

PATH = "/v1/generation-prompts"
MAX_BODY_BYTES = 131_072  # an instruction of 8,000 characters, escaped in the longest way, and the rest
DIRECT_PRIORITY = 0  # as interactive jobs
EVENT_STREAM = "text/event-stream"


Part = TypeVar("Part")


def _meaningful(text: str) -> str:
    if not text.strip():
        raise ValueError("must contain at least one character that is not white space")
    return text


class PromptRequest(BaseModel):
    """What to write a generation prompt for, and how to sample it."""

    model_config = ConfigDict(extra="forbid")

    instruction: Annotated[str, AfterValidator(_meaningful)] = Field(min_length=1, max_length=MAX_INSTRUCTION_CHARS)
    max_tokens: int | None = Field(default=None, ge=1, le=4_096)
    temperature: Finite | None = Field(default=None, ge=0, le=2)
    top_p: Finite | None = Field(default=None, gt=0, le=1)
    seed: int | None = Field(default=None, ge=0, le=MAX_SEED)
    return_token_ids: bool = False
    logprobs: int | None = Field(default=None, ge=0, le=MAX_LOGPROBS)


class PromptResponse(BaseModel):
    """The prompt, and what was asked for beside it."""

    id: str
    object: Literal["generation_prompt"] = "generation_prompt"
    prompt: GenerationPrompt
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

    async def answer(self, request: Request) -> Response:
        """Answer one call."""
        request_id = f"prompt-{uuid.uuid4().hex}"
        try:
            wanted = _parse(await _body(request))
            parts = self._write(wanted, request_id)
            if EVENT_STREAM in request.headers.get("accept", ""):
                # The first part decides between a problem and a stream.
                first = await _unless_gone(request, anext(parts))
                return StreamingResponse(
                    _events(first, parts, wanted, request_id),
                    media_type=EVENT_STREAM,
                    headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
                )
            answer = await _unless_gone(request, _last(parts))
            return Response(_response(answer, wanted, request_id), media_type="application/json")
        except ClientDisconnect:
            return Response(status_code=499)  # nobody is there to read it
        except LLMGAError as error:
            return _problem(error, request_id)

    def _write(self, wanted: PromptRequest, request_id: str) -> AsyncGenerator[str | Answer, None]:
        asked = GenerationRequest(task=Task.PROMPT, instruction=wanted.instruction)
        settings = self._settings
        sampling = Sampling(
            max_tokens=wanted.max_tokens or settings.max_tokens,
            temperature=settings.temperature if wanted.temperature is None else wanted.temperature,
            top_p=wanted.top_p,
            seed=wanted.seed,
            logprobs=wanted.logprobs,
        )
        return self._writer().write([Turn(question(asked))], sampling, request_id=request_id, priority=DIRECT_PRIORITY)


async def _body(request: Request) -> bytes:
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise UnsupportedMediaType("The body is not declared as JSON.")
    body = bytearray()
    async for block in request.stream():
        body += block
        if len(body) > MAX_BODY_BYTES:
            raise BodyTooLarge(f"The body has more than {MAX_BODY_BYTES} bytes.")
    return bytes(body)


def _parse(body: bytes) -> PromptRequest:
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        raise MalformedJSON("The body is not JSON.") from None
    try:
        return PromptRequest.model_validate(value)
    except ValidationError as error:
        faults = [
            FieldProblem(field=".".join(str(part) for part in fault["loc"]), code=fault["type"], message=fault["msg"])
            for fault in error.errors(include_url=False, include_input=False, include_context=False)
        ]
        raise InvalidRequest("The request does not fit.", errors=faults) from None


async def _last(parts: AsyncGenerator[str | Answer, None]) -> Answer:
    answer: Answer | None = None
    async with aclosing(parts):
        async for part in parts:
            if isinstance(part, Answer):
                answer = part
    if answer is None:
        raise InternalError("The language model gave no answer.")
    return answer


async def _unless_gone(request: Request, work: Awaitable[Part]) -> Part:
    """Await the work, and cancel it when the client leaves first."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working = asyncio.ensure_future(work)
    leaving = asyncio.create_task(gone())
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _events(
    first: str | Answer, parts: AsyncGenerator[str | Answer, None], wanted: PromptRequest, request_id: str
) -> AsyncIterator[bytes]:
    async with aclosing(parts):
        yield _event_of(first, wanted, request_id)
        try:
            async for part in parts:
                yield _event_of(part, wanted, request_id)
        except LLMGAError as error:
            yield _event("error", error.to_problem(request_id).model_dump_json(exclude_none=True))


def _event_of(part: str | Answer, wanted: PromptRequest, request_id: str) -> bytes:
    if isinstance(part, Answer):
        return _event("prompt.completed", _response(part, wanted, request_id))
    return _event("prompt.delta", json.dumps({"text": part}, ensure_ascii=False))


def _event(name: str, data: str) -> bytes:
    return f"event: {name}\ndata: {data}\n\n".encode()


def _response(answer: Answer, wanted: PromptRequest, request_id: str) -> str:
    return PromptResponse(
        id=request_id,
        prompt=answer.prompt,
        prompt_token_ids=answer.prompt_token_ids if wanted.return_token_ids else None,
        token_ids=answer.token_ids if wanted.return_token_ids else None,
        logprobs=answer.logprobs if wanted.logprobs is not None else None,
    ).model_dump_json(exclude_none=True)


def _problem(error: LLMGAError, request_id: str) -> Response:
    body = error.to_problem(request_id).model_dump_json(exclude_none=True)
    return Response(body, status_code=error.status, media_type="application/problem+json")
