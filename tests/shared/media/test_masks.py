"""Masks and larger canvases: what is painted, and what is refused."""

import numpy as np
import pytest

from shared.contracts import Outpaint
from shared.errors import InvalidRequest
from shared.media import (
    PAINTED_FROM,
    ImageLimits,
    check_canvas,
    check_mask,
    decode_image,
    extended,
    mask_of,
)
from tests.gateway.pictures import file_of


def fault_of(refused: pytest.ExceptionInfo[InvalidRequest]) -> tuple[str, str, str]:
    (fault,) = refused.value.errors
    return fault.field, fault.code, fault.message


def test_shades_of_gray_are_the_masks_own() -> None:
    shades = np.arange(256, dtype=np.uint8).reshape(16, 16)
    assert np.array_equal(mask_of(np.repeat(shades[..., None], 3, axis=2)), shades)


def test_what_is_transparent_in_a_mask_is_painted() -> None:
    pixels = np.zeros((4, 4, 4), np.uint8)
    pixels[:2, :, 3] = 255
    mask = mask_of(decode_image(file_of(pixels)))
    assert (mask[:2] == 0).all()
    assert (mask[2:] == 255).all()


def test_a_mask_that_paints_a_pixel_is_taken() -> None:
    mask = np.zeros((3, 5), np.uint8)
    mask[1, 1] = PAINTED_FROM
    check_mask(mask, 5, 3)
    check_mask(np.full((3, 5), 255, np.uint8), 5, 3)


def test_a_mask_of_another_size_is_refused_with_both_sizes() -> None:
    with pytest.raises(InvalidRequest) as refused:
        check_mask(np.full((3, 5), 255, np.uint8), 3, 5)
    field, code, message = fault_of(refused)
    assert (field, code) == ("mask", "wrong_size")
    assert "5x3" in message
    assert "3x5" in message


def test_a_mask_that_paints_nothing_is_refused() -> None:
    with pytest.raises(InvalidRequest) as refused:
        check_mask(np.full((3, 5), PAINTED_FROM - 1, np.uint8), 5, 3)
    assert fault_of(refused)[:2] == ("mask", "nothing_to_paint")


@pytest.mark.parametrize("outpaint", [Outpaint(right=3), Outpaint(top=1, bottom=2)])
def test_a_canvas_beyond_the_limits_is_refused_with_its_size(outpaint: Outpaint) -> None:
    limits = ImageLimits(max_side_px=10, max_pixels=80)
    check_canvas(8, 8, Outpaint(left=2), limits)
    with pytest.raises(InvalidRequest) as refused:
        check_canvas(8, 8, outpaint, limits)
    size = f"{8 + outpaint.right}x{8 + outpaint.top + outpaint.bottom}"
    assert fault_of(refused)[:2] == ("outpaint", "too_large")
    assert size in fault_of(refused)[2]


def test_an_extended_canvas_has_the_picture_inside_and_black_around_it() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (10, 20, 3), dtype=np.uint8)
    pixels[..., 0] |= 1  # nowhere black
    canvas, mask = extended(pixels, Outpaint(left=3, top=4, right=5, bottom=6))
    assert canvas.shape == (20, 28, 3)
    assert np.array_equal(canvas[4:14, 3:23], pixels)
    assert np.array_equal(mask == 0, canvas.any(axis=-1))
    assert set(np.unique(mask)) == {0, 255}
