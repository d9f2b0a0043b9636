"""The image calls as OpenAI's Python client makes them, on workers that paint plain colors."""

import asyncio
import base64
import hashlib
import io
from typing import Any

import httpx
import numpy as np
import pytest
from openai import APIError, AsyncOpenAI, BadRequestError, InternalServerError
from openai.types import ImageGenCompletedEvent, ImageGenPartialImageEvent, ImagesResponse
from PIL import Image

from shared.contracts import JobStatus, PromptMode, Task
from shared.media import decode_image
from shared.settings import GatewaySettings
from tests.gateway.conftest import House, until
from tests.gateway.pictures import file_of, pixels_of


def see_through(width: int = 24, height: int = 16) -> bytes:
    """Return a PNG whose left half is see-through."""
    pixels = np.dstack([pixels_of(width, height), np.full((height, width), 255, np.uint8)])
    pixels[:, : width // 2, 3] = 0
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def only(answer: ImagesResponse) -> Any:
    """Return the one picture of an answer."""
    assert answer.data is not None
    (picture,) = answer.data
    return picture


async def job_of(house: House, answer: ImagesResponse) -> Any:
    """Return the job that made an answer."""
    return await house.job(answer.model_extra["job_id"] if answer.model_extra else "")


async def test_words_become_a_picture_with_its_prompt(house: House, openai: AsyncOpenAI) -> None:
    answer = await openai.images.generate(prompt="a red house")
    picture = only(answer)
    data = base64.b64decode(picture.b64_json)
    job = await job_of(house, answer)
    assert hashlib.sha256(data).hexdigest() == job.images[0].sha256
    assert picture.revised_prompt == job.prompt.text == "a picture of (a red house)"
    assert picture.url is None
    assert (answer.size, answer.output_format, answer.quality, answer.background) == (
        "128x128",
        "png",
        "medium",
        "opaque",
    )
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens
    assert answer.usage.input_tokens == 8
    assert answer.created == int(job.updated_at)


async def test_fields_of_both_apis_reach_the_job(house: House, openai: AsyncOpenAI) -> None:
    answer = await openai.images.generate(
        prompt="a red house",
        model="painter",
        n=2,
        size="64x64",
        output_format="webp",
        output_compression=40,
        quality="auto",
        background="auto",
        moderation="low",
        user="somebody",
        extra_body={"seed": 7, "num_inference_steps": 3, "negative_prompt": "blurry", "prompt_mode": "verbatim"},
    )
    request = (await job_of(house, answer)).request
    assert (request.n, request.size, request.output_format, request.output_compression) == (2, "64x64", "webp", 40)
    assert (request.seed, request.num_inference_steps, request.negative_prompt) == (7, 3, "blurry")
    assert request.prompt_mode is PromptMode.VERBATIM
    assert answer.data is not None
    assert len(answer.data) == 2
    assert answer.size == "64x64"


async def test_quality_is_steps_of_the_model_s_usual_number(house: House, openai: AsyncOpenAI) -> None:
    expected: list[tuple[Any, int, str]] = [
        ("low", 2, "low"),
        ("hd", 6, "high"),
        ("standard", 4, "medium"),
        ("max", 12, "max"),
    ]
    for quality, steps, told in expected:
        answer = await openai.images.generate(prompt="a red house", quality=quality)
        assert (await job_of(house, answer)).request.num_inference_steps == steps
        assert answer.quality == told


async def test_steps_of_the_request_s_own_win_over_its_quality(house: House, openai: AsyncOpenAI) -> None:
    answer = await openai.images.generate(prompt="a", quality="max", extra_body={"num_inference_steps": 1})
    assert (await job_of(house, answer)).request.num_inference_steps == 1


async def test_url_of_a_picture_leads_to_it(house: House, openai: AsyncOpenAI) -> None:
    picture = only(await openai.images.generate(prompt="a red house", response_format="url", output_format="jpeg"))
    assert picture.b64_json is None
    assert picture.url.startswith(house.url)
    async with httpx.AsyncClient(trust_env=False) as anyone:
        found = await anyone.get(picture.url)
    assert found.headers["content-type"] == "image/jpeg"


async def test_stream_shows_pictures_on_the_way_and_then_the_finished_one(house: House, openai: AsyncOpenAI) -> None:
    stream = await openai.images.generate(prompt="a red house", stream=True, partial_images=2)
    events = [event async for event in stream]
    *partials, last = events
    assert [type(event) for event in partials] == [ImageGenPartialImageEvent] * 2
    for index, partial in enumerate(partials):
        assert isinstance(partial, ImageGenPartialImageEvent)
        assert partial.type == "image_generation.partial_image"
        assert partial.partial_image_index == index
        assert partial.output_format == "png"
        assert decode_image(base64.b64decode(partial.b64_json)).shape == (8, 8, 3)
        assert base64.b64decode(partial.b64_json).startswith(b"\x89PNG")  # as it says of itself
    assert isinstance(last, ImageGenCompletedEvent)
    assert decode_image(base64.b64decode(last.b64_json)).shape == (128, 128, 3)
    assert last.usage.total_tokens > 0
    assert last.model_extra is not None
    assert last.model_extra["revised_prompt"] == "a picture of (a red house)"


async def test_each_of_several_pictures_is_completed_in_a_stream(house: House, openai: AsyncOpenAI) -> None:
    stream = await openai.images.generate(prompt="a", n=2, stream=True, partial_images=1, output_format="jpeg")
    seen = []
    async for event in stream:
        told = event.model_dump()
        seen.append((event.type.partition(".")[2], told["image_index"], told.get("partial_image_index")))
    assert seen == [("partial_image", 0, 0), ("partial_image", 1, 0), ("completed", 0, None), ("completed", 1, None)]


async def test_mask_is_repainted_where_it_is_see_through(house: House, openai: AsyncOpenAI) -> None:
    picture = pixels_of()
    answer = await openai.images.edit(
        image=("a.jpg", file_of(picture)),
        mask=("mask.png", see_through()),
        prompt="7",
        n=1,
        size="128x128",
        extra_body={"seed": 5, "guidance_interval": "[0.0, 0.5]"},
    )
    job = await job_of(house, answer)
    assert job.request.task is Task.INPAINT
    assert (job.request.instruction, job.request.seed, job.request.guidance_interval) == ("7", 5, (0.0, 0.5))
    kept = await house.http.get(f"/v1/images/{job.request.image}")
    assert np.array_equal(decode_image(kept.content), picture)
    mask = decode_image((await house.http.get(f"/v1/images/{job.request.mask}")).content)
    assert (mask[:, :12] == 255).all()
    assert (mask[:, 12:] == 0).all()


async def test_without_a_mask_the_picture_s_own_transparency_is_it(house: House, openai: AsyncOpenAI) -> None:
    answer = await openai.images.edit(image=see_through(), prompt="a red house")
    job = await job_of(house, answer)
    mask = decode_image((await house.http.get(f"/v1/images/{job.request.mask}")).content)
    assert mask[0, 0, 0] == 255
    assert mask[0, 20, 0] == 0


async def test_picture_without_any_transparency_is_edited_as_a_whole(house: House, openai: AsyncOpenAI) -> None:
    picture = pixels_of()
    answer = await openai.images.edit(image=file_of(picture), prompt="at night", extra_body={"edit_strength": 0.5})
    request = (await job_of(house, answer)).request
    assert (request.task, request.instruction, request.mask) == (Task.EDIT, "at night", None)
    assert request.edit_strength == 0.5
    kept = await house.http.get(f"/v1/images/{request.image}")
    assert np.array_equal(decode_image(kept.content), picture)


async def test_edit_streams_under_its_own_name(openai: AsyncOpenAI) -> None:
    stream = await openai.images.edit(image=see_through(), prompt="a", stream=True, partial_images=1)
    assert [event.type async for event in stream] == ["image_edit.partial_image", "image_edit.completed"]


async def test_variation_is_a_similar_picture(house: House, openai: AsyncOpenAI) -> None:
    with pytest.warns(DeprecationWarning, match="deprecated"):  # retired by OpenAI, and still in its client
        answer = await openai.images.create_variation(
            image=file_of(pixels_of()), n=2, size="256x256", extra_body={"prompt": "at night"}
        )
    job = await job_of(house, answer)
    assert (job.request.task, job.request.n, job.request.size) == (Task.SIMILAR, 2, "256x256")
    assert job.request.instruction == "at night"


NO_EDITS: list[tuple[dict[str, Any], str | None, str]] = [
    ({"image": file_of(pixels_of()), "mask": file_of(pixels_of())}, "mask", "nothing in it is transparent"),
    ({"image": file_of(pixels_of(32, 16)), "mask": see_through()}, "mask", "is 24x16 pixels, the image 32x16"),
    ({"image": [see_through(), see_through()]}, "image", "must be one picture"),
    ({"image": b"GIF89a"}, None, "PNG, JPEG or WebP"),
]


async def test_pictures_that_make_no_edit_are_refused(house: House, openai: AsyncOpenAI) -> None:
    for files, param, words in NO_EDITS:
        with pytest.raises(BadRequestError, match=words) as refused:
            await openai.images.edit(prompt="a", **files)
        assert refused.value.param == param
    assert await house.is_empty()


async def test_failed_job_is_an_error_of_the_call(house: House, openai: AsyncOpenAI) -> None:
    house.render.gate.clear()
    asking = asyncio.ensure_future(openai.images.generate(prompt="a"))
    await until(lambda: len(house.render.claims) == 1)
    job_id = house.render.claims[0].job.id
    await house.http.post(f"/v1/jobs/{job_id}/cancel")
    with pytest.raises(APIError) as refused:
        await asking
    assert refused.value.code == "gone"


async def test_failure_in_a_stream_is_raised(house: House, openai: AsyncOpenAI) -> None:
    house.render.gate.clear()
    stream = await openai.images.generate(prompt="a", stream=True)
    await until(lambda: len(house.render.claims) == 1)
    await house.http.post(f"/v1/jobs/{house.render.claims[0].job.id}/cancel")
    with pytest.raises(APIError, match="canceled") as refused:
        [event async for event in stream]
    assert refused.value.code == "gone"


@pytest.mark.parametrize("streams", [False, True])
async def test_client_that_leaves_gives_up_its_job(house: House, openai: AsyncOpenAI, streams: bool) -> None:
    house.render.gate.clear()
    if streams:
        stream = await openai.images.generate(prompt="a", stream=True)
        await until(lambda: len(house.render.claims) == 1)
        await stream.close()
    else:
        asking = asyncio.ensure_future(openai.images.generate(prompt="a"))
        await until(lambda: len(house.render.claims) == 1)
        asking.cancel()
    job_id = house.render.claims[0].job.id

    async def is_canceled() -> bool:
        return (await house.job(job_id)).status is JobStatus.CANCELED

    await until(is_canceled)


async def test_same_key_gives_the_same_job(house: House, openai: AsyncOpenAI) -> None:
    keyed = {"Idempotency-Key": "order-1"}
    first = await openai.images.generate(prompt="a", extra_headers=keyed)
    again = await openai.images.generate(prompt="a", extra_headers=keyed)
    assert (await job_of(house, first)).id == (await job_of(house, again)).id
    edits = [
        await openai.images.edit(image=see_through(), prompt="a", extra_headers={"Idempotency-Key": "order-2"})
        for _ in range(2)
    ]  # each with a boundary of its own
    assert (await job_of(house, edits[0])).id == (await job_of(house, edits[1])).id


async def test_restart_is_told_to_whoever_waits(house: House, openai: AsyncOpenAI) -> None:
    house.render.gate.clear()
    stream = await openai.images.generate(prompt="a", stream=True)
    asking = asyncio.ensure_future(openai.images.generate(prompt="a"))
    await until(lambda: len(house.render.claims) == 2)
    house.server.backend.drain.begin()
    with pytest.raises(APIError, match="restarts") as told:
        [event async for event in stream]
    assert told.value.code == "draining"
    with pytest.raises(InternalServerError) as refused:
        await asking
    assert (refused.value.status_code, refused.value.code) == (503, "draining")
    assert refused.value.response.headers["retry-after"]


class TestShortWait:
    """With a longest wait that is over at once."""

    @pytest.fixture
    def gateway_settings(self) -> GatewaySettings:
        """Return settings with a short wait."""
        return GatewaySettings(metrics_port=0, max_wait_s=0.2)

    async def test_call_that_takes_too_long_gives_up_its_job(self, house: House, openai: AsyncOpenAI) -> None:
        house.render.gate.clear()
        with pytest.raises(InternalServerError) as refused:
            await openai.images.generate(prompt="a")
        assert (refused.value.status_code, refused.value.code) == (504, "timed_out")
        await until(lambda: len(house.render.lost) == len(house.render.claims))
