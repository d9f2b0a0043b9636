import numpy as np
import pytest

from services.diffusion.seams import BESIDE_PX, SeamScore, seam_score
from services.diffusion.sources import Mask, Pixels
from tests.services.diffusion.sources import oval, picture


@pytest.fixture
def hole() -> Mask:
    return oval(120, 100)


def calm() -> Pixels:
    """Return a picture of gentle slopes, far from black and white."""
    return (picture(120, 100).astype(np.float32) * 0.3 + 80).astype(np.uint8)


def score_of(picture: Pixels, hole: Mask) -> SeamScore:
    """Return the score where there is a border."""
    score = seam_score(picture, hole)
    assert score is not None
    return score


def shifted(hole: Mask, levels: tuple[int, int, int]) -> Pixels:
    changed = calm().astype(np.int16)
    changed[hole] += np.array(levels, np.int16)
    return changed.astype(np.uint8)


def test_a_picture_that_was_not_painted_has_hardly_a_seam(hole: Mask) -> None:
    score = score_of(calm(), hole)
    assert score.total < 1


def test_a_slope_and_an_edge_that_crosses_the_border_are_no_seam() -> None:
    slope = np.repeat(np.repeat(np.arange(100, dtype=np.uint8)[:, None, None] * 2, 120, axis=1), 3, axis=2)
    hole = np.zeros((100, 120), np.bool_)
    hole[:50] = True
    sloping = score_of(slope, hole)
    halves = slope.copy()
    halves[:, 60:] = 255 - halves[:, 60:]
    crossing = score_of(halves, hole)
    assert sloping.total < 0.1
    assert crossing.total < 0.5


def test_each_kind_of_step_is_told_apart(hole: Mask) -> None:
    brighter, tinted = score_of(shifted(hole, (20, 20, 20)), hole), score_of(shifted(hole, (30, -13, -11)), hole)
    noisy = calm().astype(np.int16)
    noisy[hole] += np.random.default_rng(0).integers(-20, 21, noisy.shape)[hole].astype(np.int16)
    rough = score_of(noisy.astype(np.uint8), hole)
    assert brighter.brightness > 10
    assert brighter.color < 2
    assert tinted.color > 15
    assert tinted.brightness < 3
    assert rough.gradient > 5
    assert rough.gradient > rough.brightness
    assert brighter.total == pytest.approx(sum(brighter))


def test_a_step_away_from_the_border_is_no_seam(hole: Mask) -> None:
    inner = calm().astype(np.int16)
    inner[40:44, 60:70] += 60
    clean, score = score_of(calm(), hole), score_of(inner.astype(np.uint8), hole)
    assert score.total <= clean.total


@pytest.mark.parametrize("fill", [False, True])
def test_a_mask_without_a_border_has_no_score(fill: bool) -> None:
    assert seam_score(calm(), np.full((100, 120), fill)) is None


def test_a_part_too_small_for_lines_beside_it_has_a_score_all_the_same() -> None:
    hole = np.zeros((BESIDE_PX, BESIDE_PX), np.bool_)
    hole[2:4, 2:4] = True
    picture = np.where(hole[..., None], np.uint8(200), np.uint8(100)).repeat(3, axis=2)
    score = score_of(picture, hole)
    assert score.brightness > 50
