"""Edits over REST: what makes one, and what does not."""

import numpy as np
import pytest

from shared.contracts import Scheduler, Task
from tests.gateway.conftest import House
from tests.gateway.pictures import base64_of, file_of, pixels_of

IMAGE = base64_of(file_of(pixels_of()))
WHITE = base64_of(file_of(np.full_like(pixels_of(), 255)))


async def test_edit_is_filled_with_all_that_it_is_made_with(house: House) -> None:
    job = await house.submit(task="edit", image=IMAGE, mask=WHITE, instruction="at night", edit_strength=0.5)
    request = job.request
    assert (request.task, request.edit_strength, request.source_guidance_scale) == (Task.EDIT, 0.5, 3.5)
    assert request.scheduler is Scheduler.DPMPP_2M_SDE
    for picture in (request.image, request.mask):
        assert picture is not None
        assert picture.startswith("img_")


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        ({"instruction": "at night"}, ("image", "missing")),
        ({"image": IMAGE}, ("instruction", "missing")),
        (
            {"image": IMAGE, "instruction": "a", "mask": base64_of(file_of(pixels_of(8, 8)))},
            ("mask", "wrong_size"),
        ),
        (
            {"image": IMAGE, "instruction": "a", "mask": base64_of(file_of(np.zeros_like(pixels_of())))},
            ("mask", "nothing_to_paint"),
        ),
    ],
)
async def test_what_makes_no_edit_is_refused_with_the_field_at_fault(
    house: House, body: dict[str, str], fault: tuple[str, str]
) -> None:
    response = await house.http.post("/v1/generations", json={"task": "edit", **body})
    assert (response.status_code, response.json()["code"]) == (422, "invalid_request")
    assert [(error["field"], error["code"]) for error in response.json()["errors"]] == [fault]
    assert await house.is_empty()
