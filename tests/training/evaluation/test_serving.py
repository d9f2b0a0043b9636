"""The running system as the figures see it: a real gateway with small workers behind the real queue."""

import asyncio

import numpy as np
import pytest

from services.mllm.instructions import Writing
from services.mllm.prompt_request import PromptRequest
from shared.contracts import Task
from shared.media import decode_image
from tests.gateway.conftest import House
from training.evaluation.figures import Sample, edited
from training.evaluation.serving import Gateway, Unserved, body_of, gray
from training.evaluation.sheets import SHEETS, drawn, sheet
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


async def test_holes_are_sent_with_their_pictures(house: House) -> None:
    hole = np.zeros(PICTURE.shape[:2], np.bool_)
    hole[:64, :64] = True
    [filled] = await asyncio.to_thread(Gateway(house.url).fill, [PICTURE], [hole], ["a star"], [3])
    assert filled.shape == PICTURE.shape
    [request] = [claim.job.request for claim in house.render.claims]
    assert (request.task, request.instruction, request.seed) == (Task.INPAINT, "a star", 3)
    for name, sent in ((request.image, PICTURE), (request.mask, gray(hole))):
        assert name is not None
        stored, _ = await asyncio.to_thread(house.artifacts.get, name, tenant="default")
        assert (decode_image(stored) == sent).all()


@pytest.mark.parametrize("task", SHEETS)
async def test_a_sheet_has_a_row_for_each_job(house: House, task: str) -> None:
    image = await asyncio.to_thread(sheet, task, Gateway(house.url), Sample(2))
    assert len(house.render.claims) == 2
    assert all(claim.job.request.debug for claim in house.render.claims)
    assert image.height > 2 * 128
    assert image.width >= 128 if task == "text_to_image" else 256


async def test_edited_pictures_are_judged_with_their_captions(house: House) -> None:
    figure = await asyncio.to_thread(edited, Sample(2), Gateway(house.url))
    assert set(figure.rows) == {"captions", "pictures", "pictures before the edit"}
    assert figure.rows["pictures"]["whole"] == 0  # these workers paint nothing that was asked for
    assert len(figure.pairs) == 2


def test_words_above_a_row_stay_within_the_sheet() -> None:
    image = drawn([("a word " * 40, [PICTURE, PICTURE]), ("short", [PICTURE])])
    assert image.width == 2 * (128 + 4)
    assert image.height > 2 * 128 + 10 * 15


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
