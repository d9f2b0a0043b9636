from pathlib import Path

import numpy as np
import pytest
import torch

from services.diffusion.batching import Buckets
from services.diffusion.checkpoints import inspect
from services.diffusion.engine import Engine
from services.diffusion.loading import load
from shared.contracts.generation import PromptEncoding
from tests.services.diffusion.pictures import render, request_for
from training.evaluation.painting import FolderPainter
from training.world import caption_of, draw, sample_scene
from training.world.drawing import Pixels

SHORT = "a red circle"
LONG = caption_of(next(scene for scene in map(sample_scene, range(100)) if len(scene.objects) == 5))


def apart(first: Pixels, second: Pixels) -> int:
    return int(np.abs(first.astype(int) - second.astype(int)).max())


@pytest.fixture(scope="module")
def painter(sd: Path) -> FolderPainter:
    return FolderPainter(sd)


@pytest.mark.parametrize("caption", [SHORT, LONG], ids=["short", "long"])
async def test_pictures_are_those_that_the_service_draws(painter: FolderPainter, sd: Path, caption: str) -> None:
    model = load("mini", inspect(sd), device=torch.device("cpu"), dtype=torch.float32, buckets=Buckets.up_to(2))
    deaths: list[BaseException] = []
    engine = Engine({model.name: model}, max_pictures=1, on_death=deaths.append)
    engine.start()
    try:
        served = await render(
            engine,
            request_for(model, caption, encoding=PromptEncoding.LLMGA, seed=7, steps=2, guidance=3.0),
        )
    finally:
        engine.close()
    (drawn,) = painter.render([caption], [7])
    assert apart(drawn, served) <= 1
    assert not deaths


def test_picture_depends_on_its_caption_and_seed_and_not_on_its_company(painter: FolderPainter) -> None:
    alone = painter.render([LONG], [3])[0]
    among = painter.render([SHORT, LONG, "a blue star", LONG], [1, 3, 2, 4])
    assert apart(among[1], alone) <= 1
    assert apart(among[1], among[3]) > 10
    assert apart(among[0], among[2]) > 10


def test_words_beyond_the_first_piece_change_the_picture(painter: FolderPainter) -> None:
    other = LONG.rsplit(". ", 1)[0] + ". There is a large filled red star, and it is placed in the bottom right."
    first, second = painter.render([LONG, other], [3, 3])
    assert apart(first, second) > 1


def test_hole_is_painted_and_the_rest_is_left(inpainting: Path) -> None:
    painter = FolderPainter(inpainting)
    picture = draw(sample_scene(1))
    hole = np.zeros((128, 128), np.bool_)
    hole[40:90, 20:70] = True
    filled, other = painter.fill([picture, picture], [hole, hole], [SHORT, LONG], [3, 3])
    assert (filled[~hole] == picture[~hole]).all()
    assert (filled[hole] != picture[hole]).any()
    assert apart(filled, other) > 1
    changed = picture.copy()
    changed[hole] = 255 - changed[hole]
    (blind,) = painter.fill([changed], [hole], [SHORT], [3])
    assert apart(blind, filled) <= 1  # what is in the hole is not looked at


def test_checkpoints_say_what_they_are_for(painter: FolderPainter, inpainting: Path) -> None:
    picture, hole = draw(sample_scene(1)), np.ones((128, 128), np.bool_)
    with pytest.raises(ValueError, match="4 input channels"):
        painter.fill([picture], [hole], [SHORT], [0])
    with pytest.raises(ValueError, match="9 input channels"):
        FolderPainter(inpainting).render([SHORT], [0])
