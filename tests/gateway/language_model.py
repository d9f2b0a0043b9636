"""A small language model's service that does what a test wants: to fall silent, to break off, to be gone."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from shared.contracts import Phase
from tests.gateway.conftest import House, until
from tests.ports import listening

HELLO: dict[str, Any] = {"model": "writer", "messages": [{"role": "user", "content": "draw a house"}]}
HEAD = {"id": "chatcmpl-1", "created": 1, "model": "writer"}
PROMPT = "a red house on a hill"
USAGE = {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12}


def whole(**more: Any) -> dict[str, Any]:
    """Return a whole answer."""
    message = {"role": "assistant", "content": f"<gen_image> {PROMPT} </gen_image>", "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
    return {**HEAD, "object": "chat.completion", "choices": [choice], "usage": USAGE, **more}


def chunk(delta: dict[str, Any], finish_reason: str | None = None, **more: Any) -> bytes:
    """Return an event of a streamed answer."""
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
    return (
        b"data: "
        + json.dumps({**HEAD, "object": "chat.completion.chunk", "choices": [choice], **more}).encode()
        + b"\n\n"
    )


STREAM = [
    chunk({"role": "assistant", "content": ""}),
    chunk({"content": "a \u2028line"}),
    chunk({}, "stop", generation_prompts=[PROMPT]),
    b"data: [DONE]\n\n",
]


async def _at_once(request: Request) -> Response:
    if (await request.json()).get("stream"):
        return Response(b"".join(STREAM), media_type="text/event-stream")
    return JSONResponse(whole())


@dataclass
class Model:
    """The language model: what it was asked, and what it does."""

    url: str
    answer: Callable[[Request], Awaitable[Response]] = _at_once
    asked: list[Any] = field(default_factory=list)
    left: asyncio.Event = field(default_factory=asyncio.Event)


@asynccontextmanager
async def talking(house: House) -> AsyncIterator[Model]:
    """Run a language model that the house knows; it answers at once."""

    async def serve(request: Request) -> Response:
        running.asked.append(await request.json())
        return await running.answer(request)

    socket = listening()
    running = Model(f"http://127.0.0.1:{socket.getsockname()[1]}")
    app = Starlette(routes=[Route("/v1/chat/completions", serve, methods=["POST"])])
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="off", timeout_graceful_shutdown=1))
    serving = asyncio.create_task(server.serve(sockets=[socket]))
    await until(lambda: server.started)
    await announce(house, running.url)
    yield running
    server.should_exit = True
    await serving


async def announce(house: House, url: str | None, phase: Phase = Phase.READY) -> None:
    """Let the house know where its language model is."""
    house.prompt.url, house.prompt.phase = url, phase
    await house.queue.announce(house.prompt.announcement())

    async def is_seen() -> bool:
        offers = await house.server.backend.fleet.look_again()
        return any(one.url == url and one.phase is phase for one in offers.announcements)

    await until(is_seen)
