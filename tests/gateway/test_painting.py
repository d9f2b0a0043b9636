"""Requests that paint in part: what their pictures must be is checked before they become jobs."""

from typing import Any

import numpy as np
import pytest

from shared.media import PAINTED_FROM
from tests.gateway.conftest import House
from tests.gateway.pictures import base64_of, file_of, pixels_of

WIDTH, HEIGHT = 40, 30
IMAGE = base64_of(file_of(pixels_of(WIDTH, HEIGHT)))


def mask_of(width: int, height: int, white: int = 255) -> str:
    """Return a mask with one pixel of this brightness."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[height // 2, width // 2] = white
    return base64_of(file_of(pixels))


async def fault_of(house: House, **body: Any) -> tuple[str, str, str]:
    """Return the one field at fault, its code and message; nothing may have been queued."""
    response = await house.http.post("/v1/generations", json={"image": IMAGE, "instruction": "a", **body})
    assert response.status_code == 422
    (fault,) = response.json()["errors"]
    assert await house.is_empty()
    return fault["field"], fault["code"], fault["message"]


async def test_picture_and_mask_are_named_by_their_ids(house: House) -> None:
    job = await house.submit(task="inpaint", image=IMAGE, mask=mask_of(WIDTH, HEIGHT, PAINTED_FROM))
    assert job.request.image is not None
    assert job.request.mask is not None
    assert job.request.image.startswith("img_")
    assert job.request.mask.startswith("img_")
    assert job.request.strength == 1.0
    white = base64_of(file_of(np.full((HEIGHT, WIDTH, 3), 255, np.uint8)))
    assert (await house.submit(task="inpaint", image=IMAGE, mask=white)).request.mask is not None


async def test_a_mask_of_another_size_is_refused_with_both_sizes(house: House) -> None:
    field, code, message = await fault_of(house, task="inpaint", mask=mask_of(HEIGHT, WIDTH))
    assert (field, code) == ("mask", "wrong_size")
    assert "30x40" in message
    assert "40x30" in message


async def test_a_mask_that_paints_nothing_is_refused(house: House) -> None:
    fault = await fault_of(house, task="inpaint", mask=mask_of(WIDTH, HEIGHT, PAINTED_FROM - 1))
    assert fault[:2] == ("mask", "nothing_to_paint")


async def test_a_mask_that_is_not_there_is_named(house: House) -> None:
    assert (await fault_of(house, task="inpaint", mask="img_" + "0" * 40))[:2] == ("mask", "not_found")


async def test_an_extension_beyond_the_limits_is_refused_with_the_size_that_it_makes(house: House) -> None:
    tall = base64_of(file_of(pixels_of(1, 6_200)))
    field, code, message = await fault_of(house, task="outpaint", image=tall, outpaint={"top": 2_048})
    assert (field, code) == ("outpaint", "too_large")
    assert "1x8248" in message
    job = await house.submit(task="outpaint", image=tall, outpaint={"top": 1_900})
    assert job.request.outpaint is not None


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        ({"task": "inpaint"}, ("mask", "missing")),
        ({"task": "outpaint"}, ("outpaint", "missing")),
        ({"task": "inpaint", "image": None, "mask": IMAGE}, ("image", "missing")),
        ({"task": "inpaint", "mask": IMAGE, "strength": 0}, ("strength", "out_of_range")),
        ({"task": "outpaint", "outpaint": {"left": 2_049}}, ("outpaint.left", "out_of_range")),
    ],
)
async def test_what_a_task_needs_is_named(house: House, body: dict[str, Any], fault: tuple[str, str]) -> None:
    assert (await fault_of(house, **body))[:2] == fault


@pytest.mark.parametrize(
    "body",
    [
        {"task": "similar", "mask": IMAGE},
        {"task": "similar", "outpaint": {"left": 8}},
        {"task": "outpaint", "outpaint": {"left": 8}, "strength": 0.5},
        {"task": "outpaint", "outpaint": {"left": 0}},
    ],
)
async def test_what_does_not_belong_to_a_task_is_refused(house: House, body: dict[str, Any]) -> None:
    assert (await fault_of(house, **body))[0] in {"", "outpaint"}
