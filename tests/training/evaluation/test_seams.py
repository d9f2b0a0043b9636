import numpy as np
import pytest
from PIL import Image, ImageFilter

from services.diffusion.seams import Mask
from training.evaluation.seams import psnr, seam_error
from training.world import draw, sample_scene
from training.world.drawing import Pixels


@pytest.fixture
def truth() -> Pixels:
    return draw(sample_scene(3))


@pytest.fixture
def hole() -> Mask:
    mask = np.zeros((128, 128), np.bool_)
    mask[30:90, 40:100] = True
    return mask


def shifted(truth: Pixels, hole: Mask, step: tuple[int, int, int]) -> Pixels:
    room = (truth.astype(np.float32) * 0.6 + 40).astype(np.uint8)  # so that nothing is clipped
    picture = room.astype(np.int16)
    picture[hole] += np.array(step, np.int16)
    return picture.astype(np.uint8)


def gray(truth: Pixels) -> Pixels:
    return (truth.astype(np.float32) * 0.6 + 40).astype(np.uint8)


def test_perfect_filling_has_no_seam(truth: Pixels, hole: Mask) -> None:
    assert seam_error(truth, truth, hole) == (0, 0)
    assert psnr(truth, truth) == float("inf")


def test_brighter_hole_is_a_step_of_brightness_alone(truth: Pixels, hole: Mask) -> None:
    seam = seam_error(shifted(truth, hole, (10, 10, 10)), gray(truth), hole)
    assert seam.brightness == pytest.approx(10, abs=0.01)
    assert seam.color == pytest.approx(0, abs=0.01)


def test_tinted_hole_is_a_step_of_color(truth: Pixels, hole: Mask) -> None:
    seam = seam_error(shifted(truth, hole, (12, -4, -4)), gray(truth), hole)
    assert seam.color > 12
    assert seam.brightness < 1


def test_noise_and_blur_are_no_step(truth: Pixels, hole: Mask) -> None:
    noise = np.random.default_rng(0).integers(-10, 11, truth.shape)
    picture = gray(truth).astype(np.int16)
    picture[hole] += noise[hole].astype(np.int16)
    assert seam_error(picture.astype(np.uint8), gray(truth), hole).brightness < 1.5
    soft = np.where(hole[..., None], np.asarray(Image.fromarray(truth).filter(ImageFilter.GaussianBlur(1))), truth)
    assert seam_error(soft, truth, hole).brightness < 2


def test_change_far_from_the_border_is_no_seam(truth: Pixels, hole: Mask) -> None:
    picture = truth.copy()
    picture[50:70, 60:80] = 0
    assert seam_error(picture, truth, hole) == (0, 0)


def test_psnr_is_of_the_hole_where_one_is_given(truth: Pixels, hole: Mask) -> None:
    picture = shifted(truth, hole, (10, 10, 10))
    assert psnr(picture, gray(truth), hole) == pytest.approx(20 * np.log10(25.5), abs=0.01)
    assert psnr(picture, gray(truth)) > psnr(picture, gray(truth), hole)


@pytest.mark.parametrize("fill", [False, True])
def test_mask_without_border_is_refused(truth: Pixels, fill: bool) -> None:
    with pytest.raises(ValueError, match="mask"):
        seam_error(truth, truth, np.full((128, 128), fill))
