"""Requests with a picture: however it is given, the job names it by an id that its workers can read."""

import asyncio
import gc
import json
import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from shared.artifacts import ArtifactStore
from shared.contracts import Job, JobStatus
from shared.jobs import DEFAULT_TENANT
from shared.media import decode_image
from tests.gateway.conftest import House
from tests.gateway.pictures import base64_of, file_of, pixels_of

PIXELS = pixels_of()
FILE = file_of(PIXELS)


async def _uploaded(house: House) -> str:
    response = await house.http.post("/v1/images", content=FILE, headers={"Content-Type": "image/png"})
    return str(response.json()["id"])


@pytest.mark.parametrize("form", ["id", "base64", "data uri"])
async def test_similar_picture_is_made_from_one_given_in_any_form(
    house: House, artifacts: ArtifactStore, form: str
) -> None:
    image = {
        "id": await _uploaded(house),
        "base64": base64_of(FILE),
        "data uri": f"data:image/png;base64,{base64_of(FILE)}",
    }
    response = await house.http.post(
        "/v1/generations", json={"task": "similar", "image": image[form]}, headers={"Prefer": "wait=60"}
    )
    job = Job.model_validate(response.json())
    assert job.status is JobStatus.SUCCEEDED
    assert job.request.image == image["id"]
    assert job.request.instruction == ""
    seen = house.prompt.claims[0].job.request.image
    assert seen is not None
    data, _ = artifacts.get(seen, tenant=DEFAULT_TENANT)
    assert np.array_equal(decode_image(data), PIXELS)
    assert len(job.images) == 1


async def test_finished_picture_can_be_the_next_one_s_source(house: House) -> None:
    first = await house.http.post("/v1/generations", json={"instruction": "a"}, headers={"Prefer": "wait=60"})
    image = first.json()["images"][0]["id"]
    job = await house.submit(task="similar", image=image)
    assert job.request.image == image


async def test_prompt_alone_may_be_about_a_picture(house: House) -> None:
    response = await house.http.post(
        "/v1/generations",
        json={"task": "prompt", "image": base64_of(FILE), "instruction": "at night"},
        headers={"Prefer": "wait=60"},
    )
    assert Job.model_validate(response.json()).status is JobStatus.SUCCEEDED


async def test_same_key_and_inline_picture_give_the_same_job(house: House) -> None:
    body = {"task": "similar", "image": base64_of(FILE)}
    first, again = [
        await house.http.post("/v1/generations", json=body, headers={"Idempotency-Key": "k"}) for _ in range(2)
    ]
    assert first.json()["id"] == again.json()["id"]
    other = {"task": "similar", "image": base64_of(file_of(pixels_of(seed=1)))}
    response = await house.http.post("/v1/generations", json=other, headers={"Idempotency-Key": "k"})
    assert response.json()["code"] == "idempotency_conflict"


@pytest.mark.parametrize("image", ["img_" + "0" * 40, "img_", "img_../../etc/passwd"])
async def test_picture_that_is_not_there_is_named(house: House, image: str) -> None:
    response = await house.http.post("/v1/generations", json={"task": "similar", "image": image})
    assert response.status_code == 422
    (fault,) = response.json()["errors"]
    assert (fault["field"], fault["code"]) == ("image", "not_found")
    assert await house.is_empty()


@pytest.mark.parametrize(
    "image", ["https://example.org/a.png", "AAAA", "not base64!", "data:text/html;base64,AAAA", base64_of(FILE[:-9])]
)
async def test_what_is_no_picture_is_refused_and_nothing_is_queued(house: House, image: str) -> None:
    response = await house.http.post("/v1/generations", json={"task": "similar", "image": image})
    assert (response.status_code, response.json()["code"]) == (422, "invalid_image")
    assert await house.is_empty()


async def test_similar_without_a_picture_is_refused(house: House) -> None:
    response = await house.http.post("/v1/generations", json={"task": "similar", "instruction": "a"})
    assert [(fault["field"], fault["code"]) for fault in response.json()["errors"]] == [("image", "missing")]


async def test_request_that_is_refused_for_another_reason_leaves_no_picture_behind(
    house: House, tmp_path: Path
) -> None:
    body = {"task": "similar", "image": base64_of(FILE), "model": "other"}
    assert (await house.http.post("/v1/generations", json=body)).json()["code"] == "model_not_served"
    assert not [path for path in (tmp_path / "artifacts").rglob("*") if path.name.startswith("img_")]


async def test_job_keeps_its_picture_from_being_swept(house: House, artifacts: ArtifactStore, tmp_path: Path) -> None:
    image = await _uploaded(house)
    (path,) = [path for path in (tmp_path / "artifacts").rglob(image)]
    os.utime(path, (0, 0))
    await house.submit(task="similar", image=image)
    assert artifacts.sweep() == 0


async def test_large_body_is_understood_like_a_small_one(house: House) -> None:
    image = base64_of(file_of(pixels_of(256, 200)))
    assert len(json.dumps(image)) > 100_000
    job = await house.submit(task="similar", image=image)
    assert job.request.image is not None
    assert job.request.image.startswith("img_")


async def test_client_that_follows_its_job_does_not_keep_its_picture_in_memory(house: House) -> None:
    await house.submit(task="similar", image=base64_of(FILE))  # what is made once is there then
    house.prompt.gate.clear()
    body = json.dumps({"task": "similar", "image": base64_of(file_of(pixels_of(480, 480)))}).encode()
    assert len(body) > 900_000
    count = 8

    async def follow(begun: asyncio.Event) -> None:
        headers = {"Accept": "text/event-stream", "Content-Type": "application/json"}
        async with house.http.stream("POST", "/v1/generations", content=body, headers=headers) as answer:
            async for _ in answer.aiter_bytes():
                begun.set()

    async def hold() -> int:
        """Return the bytes that the process has more while the clients follow."""
        before = tracemalloc.get_traced_memory()[0]
        begun = [asyncio.Event() for _ in range(count)]
        following = [asyncio.create_task(follow(event)) for event in begun]
        try:
            for event in begun:
                await event.wait()
            gc.collect()
            return tracemalloc.get_traced_memory()[0] - before
        finally:
            for task in following:
                task.cancel()
            await asyncio.gather(*following, return_exceptions=True)

    tracemalloc.start()
    try:
        assert await hold() < count * len(body) / 2
    finally:
        tracemalloc.stop()
