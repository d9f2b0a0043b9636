"""What the language model sees, worked out by hand from LLMGA.md §4."""

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from services.mllm.pictures import picture_of

Pixels = npt.NDArray[np.uint8]


def noise(height: int, width: int, *, seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


@pytest.mark.parametrize("size", [(40, 60), (60, 40), (1, 50), (50, 50)])
def test_a_picture_is_stretched_to_a_square_of_its_longer_side(size: tuple[int, int]) -> None:
    pixels = noise(*size)
    side = max(size)
    expected = np.asarray(Image.fromarray(pixels).resize((side, side), Image.Resampling.LANCZOS))
    np.testing.assert_array_equal(picture_of(pixels).pixels, expected)


def test_a_square_is_left_as_it_is() -> None:
    pixels = noise(32, 32)
    np.testing.assert_array_equal(picture_of(pixels).pixels, pixels)


def test_equal_pixels_have_equal_keys_and_others_have_others() -> None:
    pixels = noise(30, 20)
    changed = pixels.copy()
    changed[3, 4, 1] ^= 1
    flipped = pixels[::-1]  # the same bytes in another order, not contiguous
    keys = [picture_of(array).key for array in (pixels, pixels.copy(), changed, flipped)]
    assert keys[0] == keys[1]
    assert len(set(keys)) == 3
    assert all(len(key) == 64 for key in keys)


def test_what_is_to_be_painted_is_black_before_the_picture_is_stretched() -> None:
    pixels = noise(20, 40)
    mask = np.zeros((20, 40), np.uint8)
    mask[5:15, 10:30] = 255
    blackened = pixels.copy()
    blackened[5:15, 10:30] = 0
    assert picture_of(pixels, mask=mask).key == picture_of(blackened).key
    assert picture_of(pixels, mask=mask).key != picture_of(pixels).key


@pytest.mark.parametrize(("value", "is_painted"), [(0, False), (124, False), (125, True), (255, True)])
def test_a_mask_counts_from_125_on(value: int, is_painted: bool) -> None:
    pixels = np.full((4, 4, 3), 200, np.uint8)
    picture = picture_of(pixels, mask=np.full((4, 4), value, np.uint8))
    assert picture.pixels.max() == (0 if is_painted else 200)


def test_the_callers_pixels_are_never_changed() -> None:
    pixels = noise(8, 8)
    before = pixels.copy()
    picture_of(pixels, mask=np.full((8, 8), 255, np.uint8))
    np.testing.assert_array_equal(pixels, before)


@pytest.mark.parametrize(
    "pixels",
    [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8), np.zeros((0, 4, 3), np.uint8)],
)
def test_other_shapes_are_refused(pixels: Pixels) -> None:
    with pytest.raises(ValueError, match="uint8"):
        picture_of(pixels)


def test_a_mask_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match="as high and wide"):
        picture_of(noise(4, 4), mask=np.zeros((4, 5), np.uint8))
