"""Chats are passed on to a language model and come back whole, whatever becomes of either end."""

import asyncio
import base64
from collections.abc import AsyncIterator
from typing import Any

import pytest
from openai import APIError, AsyncOpenAI, BadRequestError, InternalServerError, NotFoundError, RateLimitError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from shared.contracts import JobStatus, Phase
from shared.media import decode_image
from shared.settings import GatewaySettings
from tests.gateway.conftest import House, until
from tests.gateway.language_model import HELLO, PROMPT, STREAM, Model, announce, talking, whole
from tests.gateway.pictures import base64_of, file_of, pixels_of
from tests.ports import listening


@pytest.fixture
async def model(house: House) -> AsyncIterator[Model]:
    """Yield a language model that the house knows; it answers at once."""
    async with talking(house) as model:
        yield model


def streaming(model: Model, events: list[bytes], *, breaks: bool = False, waits: bool = False) -> None:
    """Let the model stream these events, and then break off, or fall silent until its client leaves."""

    async def body() -> AsyncIterator[bytes]:
        try:
            for event in events:
                yield event[:7]  # events come in pieces of any length
                yield event[7:]
            if breaks:
                raise ConnectionResetError
            if waits:
                await asyncio.sleep(60)
        finally:
            model.left.set()

    async def stream(_: Request) -> Response:
        return StreamingResponse(body(), media_type="text/event-stream")

    model.answer = stream


async def test_chat_is_passed_on_without_what_is_ours(openai: AsyncOpenAI, model: Model) -> None:
    answer = await openai.chat.completions.create(**HELLO, temperature=0, extra_body={"render": False})
    assert answer.choices[0].message.content == f"<gen_image> {PROMPT} </gen_image>"
    assert answer.usage is not None
    assert answer.usage.total_tokens == 12
    assert model.asked == [{**HELLO, "temperature": 0}]


async def test_picture_is_passed_on_as_plain_pixels(openai: AsyncOpenAI, model: Model) -> None:
    pixels = pixels_of()
    uri = "data:image/webp;base64," + base64_of(file_of(pixels, "WEBP"))
    content: Any = [{"type": "image_url", "image_url": {"url": uri}}, {"type": "text", "text": "again"}]
    spoken = {"role": "assistant", "content": "b", "images": [{"type": "image_url"}]}
    messages: Any = [{"role": "user", "content": "a"}, spoken, {"role": "user", "content": content}]
    await openai.chat.completions.create(model="writer", messages=messages)
    (asked,) = model.asked
    assert "images" not in asked["messages"][1]
    kind, _, data = asked["messages"][2]["content"][0]["image_url"]["url"].partition(";base64,")
    assert kind == "data:image/png"
    assert (decode_image(base64.b64decode(data)) == pixels).all()


async def test_conversation_with_two_pictures_is_refused(openai: AsyncOpenAI, model: Model) -> None:
    uri = "data:image/png;base64," + base64_of(file_of(pixels_of()))
    content: Any = [{"type": "image_url", "image_url": {"url": uri}}] * 2
    with pytest.raises(BadRequestError, match="has 2 pictures; the model sees one"):
        await openai.chat.completions.create(model="writer", messages=[{"role": "user", "content": content}])
    assert model.asked == []


async def test_stream_is_passed_on_as_it_is(house: House, model: Model) -> None:
    streaming(model, STREAM)
    answer = await house.http.post("/v1/chat/completions", json={**HELLO, "stream": True})
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.content == b"".join(STREAM)


async def test_generation_prompt_is_rendered_into_the_message(house: House, openai: AsyncOpenAI, model: Model) -> None:
    async def prompts(_: Request) -> Response:
        return JSONResponse(whole(generation_prompts=[PROMPT, "another"]))

    model.answer = prompts
    answer = await openai.chat.completions.create(**HELLO, extra_body={"render": {"size": "64x64", "n": 2, "seed": 3}})
    images = answer.choices[0].message.images
    assert [image["seed"] for image in images] == [3, 4]
    assert [image["revised_prompt"] for image in images] == [PROMPT] * 2
    assert decode_image(base64.b64decode(images[0]["image_url"]["url"].partition(",")[2])).shape == (64, 64, 3)
    job = await house.job(images[0]["job_id"])
    assert job.status is JobStatus.SUCCEEDED
    assert job.prompt is not None
    assert (job.prompt.text, job.prompt.source) == (PROMPT, "verbatim")


async def test_generation_prompt_is_rendered_before_the_end_of_a_stream(openai: AsyncOpenAI, model: Model) -> None:
    streaming(model, STREAM)
    stream = await openai.chat.completions.create(**HELLO, stream=True, extra_body={"render": True})
    choices = [chunk.choices[0] async for chunk in stream]
    assert [bool(getattr(choice.delta, "images", None)) for choice in choices] == [False, False, True, False]
    assert choices[-1].finish_reason == "stop"


async def test_answer_in_words_alone_renders_nothing(house: House, openai: AsyncOpenAI, model: Model) -> None:
    answer = await openai.chat.completions.create(**HELLO, extra_body={"render": True})
    assert not hasattr(answer.choices[0].message, "images")
    assert await house.is_empty()
    assert len(model.asked) == 1


async def test_what_cannot_be_rendered_is_refused_before_a_word_is_written(openai: AsyncOpenAI, model: Model) -> None:
    for render in ({"size": "big"}, {"instruction": "x"}, {"sead": 1}, {"model": "nobody"}):
        with pytest.raises((BadRequestError, NotFoundError)) as refused:
            await openai.chat.completions.create(**HELLO, extra_body={"render": render})
        (name,) = render
        assert refused.value.param == (None if name == "model" else f"render.{name}")
    assert model.asked == []


async def test_refusal_of_the_language_model_comes_through(openai: AsyncOpenAI, model: Model) -> None:
    error = {"message": "too long", "type": "invalid_request_error", "param": None, "code": "prompt_too_long"}

    async def refuses(_: Request) -> Response:
        return JSONResponse({"error": error}, 400)

    async def crashes(_: Request) -> Response:
        return Response("Traceback: our secrets", 500)

    model.answer = refuses
    with pytest.raises(BadRequestError) as refused:
        await openai.chat.completions.create(**HELLO)
    assert refused.value.code == "prompt_too_long"
    model.answer = crashes
    with pytest.raises(InternalServerError) as failed:
        await openai.chat.completions.create(**HELLO, stream=True)
    assert failed.value.code == "internal_error"
    assert "secrets" not in failed.value.message


async def test_language_model_that_breaks_off_is_an_error_and_no_end(openai: AsyncOpenAI, model: Model) -> None:
    streaming(model, STREAM[:2], breaks=True)
    stream = await openai.chat.completions.create(**HELLO, stream=True)
    chunks = aiter(stream)
    assert [(await anext(chunks)).choices[0].delta.content for _ in range(2)] == ["", "a \u2028line"]
    with pytest.raises(APIError, match="gone in the middle"):
        await anext(chunks)


async def test_client_that_leaves_takes_its_chat_along(house: House, openai: AsyncOpenAI, model: Model) -> None:
    streaming(model, STREAM[:2], waits=True)
    stream = await openai.chat.completions.create(**HELLO, stream=True)
    await anext(aiter(stream))
    await stream.close()
    await until(model.left.is_set)
    model.left.clear()
    asking = asyncio.ensure_future(house.http.post("/v1/chat/completions", json=HELLO))
    await until(lambda: len(model.asked) == 2)
    asking.cancel()
    await until(model.left.is_set)


async def test_another_language_model_is_asked_when_one_is_gone(
    house: House, openai: AsyncOpenAI, model: Model
) -> None:
    with listening() as gone:
        dead = house.prompt.announcement().model_copy(
            update={"worker": "dead", "url": f"http://127.0.0.1:{gone.getsockname()[1]}", "free": 99}
        )
        await house.queue.announce(dead)

        async def is_seen() -> bool:
            offers = await house.server.backend.fleet.look_again()
            return dead in offers.announcements

        await until(is_seen)
        assert (await openai.chat.completions.create(**HELLO)).choices
    assert len(model.asked) == 1


async def test_without_a_language_model_the_service_is_unavailable(house: House, openai: AsyncOpenAI) -> None:
    for url, phase in ((None, Phase.READY), ("http://127.0.0.1:9", Phase.LOADING), ("http://127.0.0.1:9", Phase.READY)):
        await announce(house, url, phase)
        with pytest.raises(InternalServerError) as refused:
            await openai.chat.completions.create(**HELLO)
        assert (refused.value.status_code, refused.value.code) == (503, "no_worker")
    with pytest.raises(NotFoundError, match="Served are: writer"):
        await openai.chat.completions.create(**{**HELLO, "model": "painter"})


async def test_address_of_a_language_model_is_told_to_nobody(house: House, model: Model) -> None:
    answer = await house.http.get("/readyz?verbose")
    assert [worker["worker"] for worker in answer.json()["workers"]]
    assert model.url not in answer.text


class TestFewChats:
    """With room for one chat."""

    @pytest.fixture
    def gateway_settings(self) -> GatewaySettings:
        """Return settings with room for one chat."""
        return GatewaySettings(metrics_port=0, max_chats=1)

    async def test_chat_above_the_bound_is_told_to_come_again(self, openai: AsyncOpenAI, model: Model) -> None:
        streaming(model, STREAM[:2], waits=True)
        stream = await openai.chat.completions.create(**HELLO, stream=True)
        with pytest.raises(RateLimitError) as refused:
            await openai.chat.completions.create(**HELLO)
        assert int(refused.value.response.headers["retry-after"]) > 0
        await stream.close()
        await until(model.left.is_set)
        streaming(model, STREAM)

        async def has_room() -> bool:
            try:
                return bool([one async for one in await openai.chat.completions.create(**HELLO, stream=True)])
            except RateLimitError:
                return False

        await until(has_room)
