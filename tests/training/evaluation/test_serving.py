"""The running system as the figures see it: a real gateway with small workers behind the real queue."""

import asyncio

import numpy as np
import pytest

from services.mllm.instructions import Writing
from services.mllm.prompt_request import PromptRequest
from tests.gateway.conftest import House
from training.evaluation.serving import Gateway, Unserved, body_of
from training.evaluation.writing import Ask
from training.world import draw, sample_scene

PICTURE = draw(sample_scene(1))


async def test_captions_are_drawn_verbatim_and_each_by_its_seed(house: House) -> None:
    pictures = await asyncio.to_thread(Gateway(house.url).render, ["a star", "a heart", "a star"], [1, 2, 1])
    assert [picture.shape for picture in pictures] == [(128, 128, 3)] * 3
    assert (pictures[0] == pictures[2]).all()
    assert (pictures[0] != pictures[1]).any()
    requests = [claim.job.request for claim in house.render.claims]
    assert sorted((request.instruction, request.seed) for request in requests) == [
        ("a heart", 2), ("a star", 1), ("a star", 1),
    ]  # fmt: skip
    assert not house.prompt.claims


async def test_prompts_are_written_by_the_language_model(house: House) -> None:
    asks = [Ask(Writing.TEXT_TO_IMAGE, "a snowman"), Ask(Writing.SIMILAR, "at night", PICTURE)]
    prompts = await asyncio.to_thread(Gateway(house.url).write, asks)
    assert prompts == ["a picture of (a snowman)", "a picture of (at night)"]
    images = [claim.job.request.image for claim in house.prompt.claims if claim.job.request.image]
    assert len(images) == 1
    stored, _ = await asyncio.to_thread(house.artifacts.get, images[0], tenant="default")
    assert np.frombuffer(stored[:4], np.uint8).tolist() == [0x89, 0x50, 0x4E, 0x47]


async def test_jobs_that_take_longer_than_the_wait_are_waited_for(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.evaluation.serving.WAIT_S", 0)
    assert await asyncio.to_thread(Gateway(house.url).write, [Ask(Writing.TEXT_TO_IMAGE, "a cat")]) == [
        "a picture of (a cat)"
    ]


async def test_what_the_gateway_does_not_serve_or_refuses_is_said(house: House) -> None:
    with pytest.raises(Unserved, match="--mllm-url"):
        Gateway(house.url).write([Ask(Writing.EDIT, "make it red", PICTURE)])
    with pytest.raises(Unserved, match="422"):
        await asyncio.to_thread(Gateway(house.url).render, [""], [1])


def test_language_model_is_asked_in_the_form_that_it_takes() -> None:
    hole = np.zeros((128, 128), np.bool_)
    hole[:50] = True
    for ask in (
        Ask(Writing.TEXT_TO_IMAGE, "a snowman"),
        Ask(Writing.SIMILAR, picture=PICTURE),
        Ask(Writing.EDIT, "make it red", PICTURE),
        Ask(Writing.INPAINT, picture=PICTURE, hole=hole),
    ):
        work = PromptRequest.model_validate(body_of(ask)).work()
        assert (work.writing, work.instruction) == (ask.writing, ask.instruction)
        assert (work.picture is None) == (ask.picture is None)
        if work.picture is not None:
            black = np.where((hole if ask.hole is not None else hole & False)[..., None], np.uint8(0), PICTURE)
            assert (work.picture.pixels == black).all()
