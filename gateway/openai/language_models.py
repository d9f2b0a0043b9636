"""The language model services, as chats reach them: found by what they announce, asked over a bounded client.

A chat is no job: somebody waits for each word, nothing of it is worth keeping when they leave, and the conversation
comes whole with every call. So it is passed on, and nothing about it stays here.
"""

import random
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from contextlib import asynccontextmanager

import httpx

from gateway.offers import Offers
from shared.contracts import Announcement, Phase, Stage
from shared.errors import InternalError, ModelNotServed, NoWorker, QueueFull

PATH = "/v1/chat/completions"
CONNECT_S = 2.0  # a service of the same network answers in milliseconds
# Between two pieces of an answer. The longest pause is before the first: others' prompts are read then.
SILENCE_S = 120.0
RETRY_AFTER_S = 2
MAX_ANSWER_BYTES = 8 * 1_048_576  # 4,096 tokens, each with 20 log-probabilities

_JSON = "application/json"


class LanguageModels:
    """Passes chats on; `aclose` when done."""

    def __init__(self, max_chats: int) -> None:
        self._max_chats = max_chats
        self._open = 0
        self._http = httpx.AsyncClient(
            timeout=httpx.Timeout(SILENCE_S, connect=CONNECT_S),
            limits=httpx.Limits(max_connections=max_chats, max_keepalive_connections=8),
            trust_env=False,
        )

    async def aclose(self) -> None:
        """Close all connections."""
        await self._http.aclose()

    @asynccontextmanager
    async def answering(self, offers: Offers, model: str, body: bytes) -> AsyncIterator[httpx.Response]:
        """Yield the answer of a service of the model, with its body still to be read. Leaving ends it there.

        Raises:
            ModelNotServed: nobody serves the model.
            NoWorker: nobody who serves it answers now.
            QueueFull: as many chats as may be are under way.
        """
        urls = _urls(offers, model)
        if self._open >= self._max_chats:
            raise QueueFull(f"{self._open} chats are under way; no more are taken now.", retry_after_s=RETRY_AFTER_S)
        self._open += 1
        try:
            response = await self._send(urls, body)
            try:
                yield response
            finally:
                await response.aclose()
        finally:
            self._open -= 1

    async def _send(self, urls: Iterable[str], body: bytes) -> httpx.Response:
        for url in urls:
            request = self._http.build_request("POST", url + PATH, content=body, headers={"Content-Type": _JSON})
            try:
                return await self._http.send(request, stream=True)
            except httpx.TransportError:
                continue  # it may have ended a moment ago; another one can do the same
        raise _nobody()


async def whole(response: httpx.Response) -> bytes:
    """Return the body of an answer.

    Raises:
        NoWorker: the service was gone before its end.
        InternalError: it is longer than any answer can be.
    """
    body = bytearray()
    async for chunk in chunks(response):
        body += chunk
        if len(body) > MAX_ANSWER_BYTES:
            raise InternalError("The language model's answer was longer than any can be.")
    return bytes(body)


async def chunks(response: httpx.Response) -> AsyncGenerator[bytes, None]:
    """Yield the body of an answer as it comes.

    Raises:
        NoWorker: the service was gone before its end.
    """
    try:
        async for chunk in response.aiter_bytes():
            yield chunk
    except httpx.TransportError:
        raise NoWorker(
            "The language model was gone in the middle of its answer.", retry_after_s=RETRY_AFTER_S
        ) from None


def _urls(offers: Offers, model: str) -> list[str]:
    """Return where the model can be asked now, the idlest service first."""
    serving = [
        worker
        for worker in offers.announcements
        if worker.stage is Stage.PROMPT and any(served.name == model for served in worker.models)
    ]
    if not serving:
        names = sorted({offer.model.name for offer in offers.models if offer.stage is Stage.PROMPT})
        raise ModelNotServed("No language model of that name is there.", served_models=names)
    ready = [worker for worker in serving if worker.phase is Phase.READY]
    ordered: list[Announcement] = sorted(ready, key=lambda worker: (-worker.free, random.random()))
    urls = [worker.url for worker in ordered if worker.url is not None]
    if not urls:
        raise _nobody()
    return urls


def _nobody() -> NoWorker:
    return NoWorker("No language model of that name answers now.", retry_after_s=RETRY_AFTER_S)
