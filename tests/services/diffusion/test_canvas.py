"""Painting in part, the arrays: what is known keeps its bits, whatever the sizes, the mask and what was rendered."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.diffusion.canvas import MAX_SHIFT, Canvas, covering, matched, region_of, spread
from services.diffusion.sources import Pixels
from shared.contracts import Outpaint
from shared.media import PAINTED, PAINTED_FROM
from tests.services.diffusion.sources import near, oval, picture

SIZES = st.sampled_from([(64, 64), (128, 128), (64, 96)])


def rendered(size: tuple[int, int], seed: int) -> Pixels:
    """Return what a model might make: noise, which is nowhere what was there."""
    return np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)


@st.composite
def masks(draw: Any) -> Pixels:
    """Return masks of any form and shade with one painted pixel at least, on pictures of any size."""
    width, height = draw(st.integers(1, 300)), draw(st.integers(1, 200))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    kind = draw(st.sampled_from(["box", "dots", "shades", "all"]))
    mask = np.zeros((height, width), np.uint8)
    if kind == "all":
        mask[:] = PAINTED
    if kind == "dots":
        mask[rng.random((height, width)) < 0.02] = PAINTED
    if kind in ("box", "shades"):
        (left, right), (top, bottom) = (sorted(rng.integers(0, end + 1, 2)) for end in (width, height))
        mask[top:bottom, left:right] = PAINTED
    if kind == "shades":
        mask = np.where(mask > 0, rng.integers(0, 256, mask.shape), 0).astype(np.uint8)
    mask[rng.integers(height), rng.integers(width)] = draw(st.integers(PAINTED_FROM, PAINTED))
    return mask


def check_inpaint(mask: Pixels, size: tuple[int, int], band_px: int, seed: int) -> None:
    """Check one painted picture."""
    height, width = mask.shape
    before = picture(width, height, seed)
    canvas = Canvas(before, mask, size, band_px)
    source = canvas.source()
    assert source.pixels.shape == (size[1], size[0], 3)
    assert source.mask is not None
    assert source.mask.any()
    after = canvas.blended(rendered(size, seed))
    assert after.shape == before.shape
    known = ~near(mask, band_px)
    assert np.array_equal(after[known], before[known])


def check_outpaint(width: int, height: int, outpaint: Outpaint, size: tuple[int, int], band_px: int) -> None:
    """Check one extended picture."""
    before = picture(width, height)
    after = Canvas.around(before, outpaint, size, band_px).blended(rendered(size, 1))
    wide, high = width + outpaint.left + outpaint.right, height + outpaint.top + outpaint.bottom
    assert after.shape == (high, wide, 3)
    cut = [band_px if side else 0 for side in (outpaint.top, outpaint.bottom, outpaint.left, outpaint.right)]
    inner = np.s_[cut[0] : max(cut[0], height - cut[1]), cut[2] : max(cut[2], width - cut[3])]
    placed = after[outpaint.top : outpaint.top + height, outpaint.left : outpaint.left + width]
    assert np.array_equal(placed[inner], before[inner])


INPAINTS = (masks(), SIZES, st.integers(0, 12), st.integers(0, 9))
OUTPAINTS = (
    st.integers(1, 200),
    st.integers(1, 200),
    st.builds(Outpaint, left=st.integers(0, 90), top=st.integers(0, 90), right=st.integers(1, 90), bottom=st.just(0)),
    SIZES,
    st.integers(0, 12),
)


@settings(max_examples=60, deadline=None)
@given(*INPAINTS)
def test_known_pixels_keep_their_bits(mask: Pixels, size: tuple[int, int], band_px: int, seed: int) -> None:
    check_inpaint(mask, size, band_px, seed)


@pytest.mark.deep
@settings(max_examples=200, deadline=None)
@given(*INPAINTS)
def test_known_pixels_of_two_hundred_pictures_keep_their_bits(
    mask: Pixels, size: tuple[int, int], band_px: int, seed: int
) -> None:
    check_inpaint(mask, size, band_px, seed)


@settings(max_examples=60, deadline=None)
@given(*OUTPAINTS)
def test_an_extended_picture_holds_the_old_one(
    width: int, height: int, outpaint: Outpaint, size: tuple[int, int], band_px: int
) -> None:
    check_outpaint(width, height, outpaint, size, band_px)


@pytest.mark.deep
@settings(max_examples=200, deadline=None)
@given(*OUTPAINTS)
def test_two_hundred_extended_pictures_hold_the_old_ones(
    width: int, height: int, outpaint: Outpaint, size: tuple[int, int], band_px: int
) -> None:
    check_outpaint(width, height, outpaint, size, band_px)


@settings(max_examples=60, deadline=None)
@given(masks(), SIZES)
def test_the_region_holds_what_is_painted_and_has_the_aspect_of_its_size(mask: Pixels, size: tuple[int, int]) -> None:
    painted = mask >= PAINTED_FROM
    region = region_of(painted, size, 32)
    height, width = mask.shape
    inside = np.zeros_like(painted)
    inside[region.inside(width, height)] = True
    assert not (painted & ~inside).any()
    per_pixel = region.width / size[0], region.height / size[1]
    assert abs(region.width - per_pixel[1] * size[0]) <= 1 + per_pixel[1], "a rounded pixel apart"
    assert region.width <= width or region.height <= height, "it reaches beyond the picture one way at most"
    if width >= size[0] and height >= size[1]:
        assert region.width >= size[0], "nothing is enlarged needlessly"


def test_a_small_part_of_a_large_picture_is_rendered_in_its_own_resolution() -> None:
    mask = np.zeros((300, 400), np.uint8)
    mask[200:220, 350:370] = PAINTED
    canvas = Canvas(picture(400, 300), mask, (128, 128))
    region = canvas.region
    assert (region.left, region.top, region.width, region.height) == (272, 146, 128, 128)
    source = canvas.source()
    assert np.array_equal(source.pixels, canvas.pixels[146:274, 272:400])
    assert np.array_equal(canvas.blended(source.pixels), canvas.pixels), "the same pixels change nothing"


def test_what_is_larger_than_the_model_renders_is_scaled_with_its_surroundings() -> None:
    mask = np.zeros((500, 900), np.uint8)
    mask[100:400, 100:400] = PAINTED
    region = Canvas(picture(900, 500), mask, (128, 128)).region
    assert region.width == region.height == 450
    assert region.left <= 100 - 75 + 1


def test_what_lies_beyond_a_narrow_picture_is_painted_and_cut_off() -> None:
    canvas = Canvas(picture(1, 500), np.full((500, 1), PAINTED, np.uint8), (64, 64))
    source = canvas.source()
    assert source.mask is not None
    assert source.mask.all()
    assert canvas.blended(rendered((64, 64), 0)).shape == (500, 1, 3)
    half = Canvas(picture(64, 32), np.pad(np.full((32, 10), PAINTED, np.uint8), ((0, 0), (0, 54))), (64, 64)).source()
    assert half.mask is not None
    assert half.mask[:16].all()
    assert half.mask[48:].all()
    assert not half.mask[16:48, 16:].any()


def test_a_line_thinner_than_a_latent_is_seen_by_the_latents() -> None:
    painted = np.zeros((64, 64), bool)
    painted[:, 13] = True
    assert covering(painted, (64, 64))[::8, ::8].any(axis=0).tolist() == [False, True] + [False] * 6
    large = np.zeros((1024, 1024), bool)
    large[:, 333] = True
    assert covering(large, (64, 64))[::8, ::8].any()


def test_a_mask_falls_evenly_over_the_band_and_keeps_its_shades() -> None:
    hard = np.zeros((1, 9), np.uint8)
    hard[0, 4] = PAINTED
    assert spread(hard, 3)[0].tolist() == [0, 64, 127, 191, 255, 191, 127, 64, 0]
    soft = np.array([[0, 40, 80, 120, 160, 200, 255]], np.uint8)
    assert np.array_equal(spread(soft, 3), soft)


def test_shades_of_the_mask_are_shares_of_the_new_picture() -> None:
    before = np.full((64, 64, 3), 100, np.uint8)
    mask = np.full((64, 64), PAINTED, np.uint8)
    mask[0] = 51
    after = Canvas(before, mask, (64, 64)).blended(np.full((64, 64, 3), 200, np.uint8))
    assert after[0, 0].tolist() == [120, 120, 120]
    assert after[1, 0].tolist() == [200, 200, 200]


@pytest.mark.parametrize(("shift", "left"), [(10, 0), (-7, 0), (MAX_SHIFT + 30, 30)])
def test_the_rendered_picture_is_moved_to_the_color_that_is_known_beside_it(shift: int, left: int) -> None:
    known = np.full((64, 64, 3), 120, np.uint8)
    mask = oval(64, 64).astype(np.uint8) * PAINTED
    placed = (known.astype(int) + shift).astype(np.uint8)
    moved = matched(placed, known, mask)
    assert np.array_equal(moved, known + left)


def test_without_known_pixels_beside_it_the_rendered_picture_stays() -> None:
    made = rendered((32, 32), 0)
    assert matched(made, np.zeros_like(made), np.full((32, 32), PAINTED, np.uint8)) is made
