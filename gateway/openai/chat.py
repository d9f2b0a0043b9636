"""`/v1/chat/completions`: passed on to a language model; the generation prompt of an answer is rendered on request.

With `render` the picture comes in `images` of the message, or of a delta before the last: as a data URI, which is how
other servers give pictures in chats, with its address, id and seed beside it.
"""

import hashlib
import json
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, aclosing
from typing import Any

import httpx
from fastapi import APIRouter, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from gateway import sse
from gateway.backend import Backend, answering_backend_of
from gateway.connection import Ending, while_connected
from gateway.json_body import read_model
from gateway.openai import documentation
from gateway.openai.chat_shapes import ChatBody
from gateway.openai.language_models import chunks, whole
from gateway.openai.results import Results
from gateway.openai.streaming import error_event
from gateway.openai.waiting import rendered, restarting
from gateway.submission import count_request, understand
from shared.errors import InternalError, LLMGAError, ModelNotServed, NoWorker

_JSON = "application/json"
_EVENT_END = b"\n\n"
_DATA = b"data: "

router = APIRouter(tags=["openai"])


@router.post("/v1/chat/completions", **documentation.COMPLETE_CHAT)
async def complete_chat(request: Request) -> Response:
    """Continue a conversation, in OpenAI's shapes."""
    backend = answering_backend_of(request)
    body, _ = await read_model(request, ChatBody)
    wanted = body.rendering()
    if wanted is not None:
        await understand(wanted, backend)  # refused now, not after the answer is written
    await count_request(backend)
    passed_on = await body.passed_on(backend.pictures)
    answering = AsyncExitStack()
    answer: Response | None = None

    async def ask() -> None:
        nonlocal answer
        upstream = await _open(answering, backend, body.model, passed_on)
        if upstream.status_code != 200:
            answer = await _refusal(upstream)
        elif body.stream:
            answer = _stream(request, backend, body, upstream, answering.pop_all())
        else:
            answer = await _whole(request, backend, body, upstream)

    async with answering:
        ending = await while_connected(ask(), request.receive, backend.drain)
    if ending is Ending.DRAINED:
        raise restarting()
    return answer or Response()  # nobody reads it


async def _open(answering: AsyncExitStack, backend: Backend, model: str, body: bytes) -> httpx.Response:
    models = backend.language_models
    try:
        return await answering.enter_async_context(models.answering(backend.fleet.view.offers, model, body))
    except (NoWorker, ModelNotServed):  # one may have come since the last look
        offers = await backend.fleet.look_again()
        return await answering.enter_async_context(models.answering(offers, model, body))


async def _refusal(upstream: httpx.Response) -> Response:
    """Return a refusal of the language model's service, which speaks as we do."""
    body = await whole(upstream)
    if upstream.headers.get("content-type", "").partition(";")[0] != _JSON or b'"error"' not in body:
        raise InternalError("The language model's service could not answer.")
    return Response(body, upstream.status_code, {"Cache-Control": "no-store"}, media_type=_JSON)


async def _whole(request: Request, backend: Backend, body: ChatBody, upstream: httpx.Response) -> Response:
    told = await whole(upstream)
    if body.render:
        answer = json.loads(told)
        async with aclosing(_pictures(request, backend, body, answer)) as pictures:
            async for picture in pictures:
                if picture is not None:
                    answer["choices"][0]["message"].setdefault("images", []).append(picture)
        told = json.dumps(answer, ensure_ascii=False).encode()
    return Response(told, 200, {"Cache-Control": "no-store"}, media_type=_JSON)


def _stream(
    request: Request, backend: Backend, body: ChatBody, upstream: httpx.Response, answering: AsyncExitStack
) -> Response:
    async def told() -> AsyncGenerator[bytes, None]:
        try:
            async for event in _events(upstream):
                if body.render and b'"generation_prompts"' in event:
                    async with aclosing(_shown(request, backend, body, event)) as pieces:
                        async for piece in pieces:
                            yield piece
                yield event
        except LLMGAError as error:
            yield error_event(error.to_problem())

    return _ChatStream(told(), backend, answering)


class _ChatStream(sse.EventStream):
    """A stream that lets go of the language model however it ends, and if it never begins."""

    def __init__(self, stream: AsyncGenerator[bytes, None], backend: Backend, answering: AsyncExitStack) -> None:
        super().__init__(stream, backend.drain, farewell=error_event(restarting().to_problem()))
        self._answering = answering

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the stream (`EventStream`)."""
        async with self._answering:
            await super().__call__(scope, receive, send)


async def _shown(request: Request, backend: Backend, body: ChatBody, event: bytes) -> AsyncGenerator[bytes, None]:
    """Yield a chunk with each picture of the last chunk's generation prompt, and comments while it is made."""
    last = json.loads(event.removeprefix(_DATA))
    async with aclosing(_pictures(request, backend, body, last)) as pictures:
        async for picture in pictures:
            if picture is None:
                yield sse.PING
                continue
            choice = {"index": 0, "delta": {"images": [picture]}, "logprobs": None, "finish_reason": None}
            chunk = {key: value for key, value in last.items() if key != "generation_prompts"}
            yield _DATA + json.dumps({**chunk, "choices": [choice]}, ensure_ascii=False).encode() + _EVENT_END


async def _pictures(
    request: Request, backend: Backend, body: ChatBody, answer: dict[str, Any]
) -> AsyncGenerator[dict[str, Any] | None, None]:
    """Yield the pictures of an answer's generation prompt, and None after each silence while they are made.

    Raises:
        LLMGAError: they could not be made.
    """
    prompts = answer.get("generation_prompts")
    wanted = body.rendering(prompts[0]) if prompts else None
    if wanted is None:
        return
    digest = hashlib.sha256(wanted.model_dump_json().encode()).hexdigest()
    results = Results.of(request, backend)
    async with aclosing(rendered(backend, await understand(wanted, backend), body_hash=digest)) as waiting:
        async for job in waiting:
            if job is None:
                yield None
                continue
            for picture in await results.inline(job):
                yield picture


async def _events(upstream: httpx.Response) -> AsyncGenerator[bytes, None]:
    """Yield the events of a stream one by one, each with its end."""
    held = b""
    async with aclosing(chunks(upstream)) as pieces:
        async for piece in pieces:
            *events, held = (held + piece).split(_EVENT_END)
            for event in events:
                yield event + _EVENT_END
