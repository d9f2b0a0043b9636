"""Crops and SDXL's six numbers, against cases worked by hand (LLMGA.md §7.3)."""

import numpy as np
import pytest

from training.data.buckets import Pixels, crop_to


def ramp(height: int, width: int) -> Pixels:
    """Return a picture whose red channel says the column and whose green one says the row."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0] = np.arange(width)[None]
    pixels[..., 1] = np.arange(height)[:, None]
    return pixels


class Always:
    """A generator that mirrors every picture, or none."""

    def __init__(self, value: float) -> None:
        self.value = value

    def random(self) -> float:
        return self.value


MIRROR, KEEP = Always(0.49), Always(0.5)


def crop(pixels: Pixels, side: int, generator: Always = KEEP, *, flip: bool = True):  # type: ignore[no-untyped-def]
    return crop_to(pixels, side, random_crop=False, flip=flip, generator=generator)  # type: ignore[arg-type]


def test_a_wide_picture_is_cut_in_its_middle() -> None:
    # 100 high, 180 wide, cut to 100: 80 columns are left over, 40 on each side.
    cropped = crop(ramp(100, 180), 100)
    assert (cropped.pixels[0, 0, 0], cropped.pixels[0, -1, 0]) == (40, 139)
    assert cropped.time_ids() == (100, 180, 0, 40, 100, 100)


def test_a_mirrored_picture_says_the_corner_on_its_own_side() -> None:
    # 45 columns left over: the crop begins at 22, so 23 are on its right, which is the mirrored picture's left.
    cropped = crop(ramp(100, 145), 100, MIRROR)
    assert (cropped.pixels[0, 0, 0], cropped.pixels[0, -1, 0]) == (121, 22)
    assert cropped.time_ids() == (100, 145, 0, 23, 100, 100)


def test_the_shorter_side_is_resized_and_the_original_size_is_told() -> None:
    cropped = crop(ramp(200, 250), 100)
    assert cropped.pixels.shape == (100, 100, 3)
    assert cropped.time_ids() == (200, 250, 0, 12, 100, 100)  # 125 wide; 12.5 rounds to even, as torchvision's


def test_a_small_picture_grows() -> None:
    assert crop(ramp(30, 20), 64).time_ids() == (30, 20, 16, 0, 64, 64)


def test_random_crops_are_within_the_picture_and_of_the_generator() -> None:
    def corners(seed: int) -> list[tuple[int, int]]:
        generator = np.random.default_rng(seed)
        return [crop_to(ramp(50, 90), 50, random_crop=True, flip=False, generator=generator).corner for _ in range(200)]

    found = corners(0)
    assert {top for top, _ in found} == {0}
    lefts = {left for _, left in found}
    assert (min(lefts), max(lefts)) == (0, 40)
    assert found == corners(0) != corners(1)


def test_half_of_the_pictures_are_mirrored_where_it_is_asked_for() -> None:
    generator = np.random.default_rng(0)
    mirrored = [
        crop_to(ramp(8, 8), 8, random_crop=False, flip=True, generator=generator).pixels[0, 0, 0] == 7
        for _ in range(400)
    ]
    assert 0.4 < np.mean(mirrored) < 0.6
    assert crop(ramp(8, 8), 8, MIRROR, flip=False).pixels[0, 0, 0] == 0


@pytest.mark.parametrize("shape", [(16, 16), (17, 33), (64, 16), (500, 16)])
def test_whatever_the_shape_the_square_is_filled(shape: tuple[int, int]) -> None:
    cropped = crop(ramp(*(min(side, 250) for side in shape)), 16)
    assert cropped.pixels.shape == (16, 16, 3)
    assert cropped.pixels.flags.c_contiguous
