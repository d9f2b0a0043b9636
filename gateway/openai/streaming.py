"""A job's events as those of OpenAI's image calls: pictures on the way, then each finished picture.

A stream cannot be taken up again, as OpenAI's clients never do: a client that leaves gives up its job.
"""

import asyncio
import base64
from collections import Counter
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any

from gateway.backend import Backend
from gateway.openai.image_answers import Call, PartialImageEvent
from gateway.openai.results import Results, check_succeeded
from gateway.sse import PING
from shared.contracts import Event, EventType, Job, OpenAIErrorEnvelope, OutputFormat, Problem
from shared.errors import LLMGAError
from shared.jobs.follower import START
from shared.media import decode_image, encode_image


def error_event(problem: Problem) -> bytes:
    """Return the event that makes OpenAI's clients raise."""
    return f"event: error\ndata: {OpenAIErrorEnvelope.of(problem).model_dump_json()}\n\n".encode()


async def image_events(backend: Backend, job: Job, call: Call, results: Results) -> AsyncGenerator[bytes, None]:
    """Yield the events of one call, until each picture is there or the job has failed."""
    shown: Counter[int] = Counter()
    ping_s = backend.settings.gateway.sse_ping_s
    try:
        async with aclosing(backend.follower.follow(job.id, START, idle_s=ping_s)) as events:
            async for event in events:
                if event is None:
                    yield PING
                elif event.type is EventType.RENDER_PREVIEW:
                    index = int(event.data["index"])
                    partial = await asyncio.to_thread(_partial, event, shown[index], job, call, results)
                    shown[index] += 1
                    yield _named(f"{call}.partial_image", partial)
                elif event.type.ends_stream:
                    break
        ended = await backend.queue.get(job.id, tenant=backend.caller.tenant)
        check_succeeded(ended)
        for image in ended.images:
            yield _named(f"{call}.completed", await results.completed(ended, image, call))
    except LLMGAError as error:
        yield error_event(error.to_problem())


def _partial(event: Event, number: int, job: Job, call: Call, results: Results) -> bytes:
    partial = PartialImageEvent(
        type=f"{call}.partial_image",
        b64_json=_preview(event.data, job.request.output_format),
        created_at=int(event.id.partition("-")[0]) // 1_000,
        output_format=job.request.output_format,
        quality=results.quality,
        size=job.request.size or "",
        image_index=int(event.data["index"]),
        partial_image_index=number,
    )
    return partial.model_dump_json().encode()


def _preview(data: Mapping[str, Any], output_format: OutputFormat) -> str:
    """Return a preview in the format of the finished picture: clients write both to files of one kind."""
    encoded = str(data["data"])
    if data["media_type"] == output_format.media_type:
        return encoded
    pixels = decode_image(base64.b64decode(encoded))
    return base64.b64encode(encode_image(pixels, output_format, {})).decode()


def _named(name: str, data: bytes) -> bytes:
    return b"event: " + name.encode() + b"\ndata: " + data + b"\n\n"
