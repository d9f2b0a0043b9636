"""Degradations against LLMGA.md §6.3 and formulas worked out by hand."""

import math
from collections import Counter
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from training.data.degradations import (
    FIRST,
    KERNEL_SIZES,
    SECOND,
    Degradation,
    Pixels,
    RealESRGAN,
    Seams,
    draw_kernel,
    filtered,
    gaussian_kernel,
    gaussian_noise,
    jpeg,
    poisson_noise,
    relit,
    sinc_kernel,
    to_picture,
    to_pixels,
)

NOTHING = replace(SECOND, blur=0.0, resize=(0, 0, 1), noise=(0, 0), gaussian=1.0, jpeg=(100, 100))
SECOND_ROUNDS = {"blur resize": 0.8, "resize": 0.2}
RESIZED = [replace(NOTHING, resize=order.resize, resize_range=order.resize_range) for order in (FIRST, SECOND)]
RELIT_ONLY = RealESRGAN(contrast=0.06, final_sinc=0, first=NOTHING, second=NOTHING)


def flat(level: int, height: int = 16, width: int = 16) -> Pixels:
    return np.full((height, width, 3), level, dtype=np.uint8)


def scene(height: int = 96, width: int = 128) -> Pixels:
    """Return smooth shades with an edge."""
    y, x = np.mgrid[:height, :width]
    pixels = np.stack((x * 255 // width, y * 255 // height, (x + y) % 64 * 3), axis=-1).astype(np.uint8)
    pixels[height // 4 : height // 2, width // 4 : width // 2] = (250, 20, 20)
    return pixels


def test_published_numbers() -> None:
    assert (FIRST.sigma, FIRST.resize, FIRST.resize_range, FIRST.noise, FIRST.jpeg, FIRST.blur) == (
        (0.2, 3),
        (0.2, 0.7, 0.1),
        (0.15, 1.5),
        (1, 30),
        (30, 95),
        1.0,
    )
    assert (SECOND.sigma, SECOND.resize, SECOND.resize_range, SECOND.noise, SECOND.jpeg, SECOND.blur) == (
        (0.2, 1.5),
        (0.3, 0.4, 0.3),
        (0.3, 1.2),
        (1, 25),
        (30, 95),
        0.8,
    )
    assert KERNEL_SIZES == (7, 9, 11, 13, 15, 17, 19, 21)
    assert (RealESRGAN(0.06).brightness, RealESRGAN(0.06).final_sinc) == (0.05, 0.8)


@pytest.mark.parametrize(
    ("level", "contrast", "brightness", "expected"),
    [
        (100, 1.06, 0.05, 119),  # 106 + 12.75 = 118.75
        (100, 0.92, -0.05, 79),  # 92 - 12.75 = 79.25
        (250, 1.08, 0.05, 255),
        (5, 1.0, -0.05, 0),
        (200, 1.0, 0.0, 200),
    ],
)
def test_relighting_is_clipped_and_rounded_to_8_bits(
    level: int, contrast: float, brightness: float, expected: int
) -> None:
    picture = relit(to_picture(flat(level)), contrast, brightness)
    assert np.array_equal(to_pixels(picture), flat(expected))


def test_contrast_and_brightness_fill_their_ranges() -> None:
    # Black shows the brightness alone; the difference of two grays shows the contrast.
    pixels = flat(150, 8, 8)
    pixels[:4] = 50
    lows, contrasts = [], []
    for seed in range(400):
        out = RELIT_ONLY(pixels, 1, np.random.default_rng(seed)).astype(float)
        contrasts.append((out[7, 7, 0] - out[0, 0, 0]) / 100)
        lows.append(out[0, 0, 0] - 50 * contrasts[-1])
        assert (out[:4] == out[0, 0, 0]).all()
    assert (min(contrasts), max(contrasts)) == pytest.approx((0.94, 1.06), abs=0.012)  # a level is 0.01
    assert (min(lows), max(lows)) == pytest.approx((-12.75, 12.75), abs=1.5)
    assert np.mean(contrasts) == pytest.approx(1, abs=0.006)


def test_isotropic_kernel_is_a_gaussian() -> None:
    kernel = gaussian_kernel(7, 1.5, 1.5, 0.0)
    assert kernel.shape == (7, 7)
    assert kernel.sum() == pytest.approx(1)
    assert kernel[3, 5] / kernel[3, 3] == pytest.approx(math.exp(-(2**2) / (2 * 1.5**2)))
    assert kernel[1, 2] / kernel[3, 3] == pytest.approx(math.exp(-5 / (2 * 1.5**2)))
    assert np.allclose(kernel, kernel.T)


def test_anisotropic_kernel_turns_by_its_angle() -> None:
    lying, standing = gaussian_kernel(9, 3.0, 0.5, 0.0), gaussian_kernel(9, 3.0, 0.5, math.pi / 2)
    assert lying[4, 6] / lying[4, 4] == pytest.approx(math.exp(-4 / 18))
    assert lying[6, 4] / lying[4, 4] == pytest.approx(math.exp(-4 / 0.5))
    assert np.allclose(standing, lying.T)
    diagonal = gaussian_kernel(9, 3.0, 0.5, math.pi / 4)
    assert diagonal[6, 6] / diagonal[4, 4] == pytest.approx(math.exp(-8 / 18))


@pytest.mark.parametrize(("beta", "q"), [(0.5, 4.0), (2.0, 4.0)])
def test_generalized_and_plateau_kernels_follow_their_exponent(beta: float, q: float) -> None:
    generalized = gaussian_kernel(7, 1.0, 1.0, 0.0, beta=beta)
    plateau = gaussian_kernel(7, 1.0, 1.0, 0.0, beta=beta, plateau=True)
    assert generalized[3, 5] / generalized[3, 3] == pytest.approx(math.exp(-(q**beta) / 2))
    assert plateau[3, 5] / plateau[3, 3] == pytest.approx(1 / (1 + q**beta))


def test_sinc_kernel_passes_below_its_cutoff_and_stops_above() -> None:
    kernel = sinc_kernel(21, math.pi / 2)
    assert kernel.sum() == pytest.approx(1)
    assert np.allclose(kernel, kernel.T)
    # J1(pi/2) = 0.56682; at distance 1 the value is pi/2 * J1 / (2 pi), at the center (pi/2)^2 / (4 pi).
    assert kernel[10, 11] / kernel[10, 10] == pytest.approx((math.pi / 2 * 0.566824 / (2 * math.pi)) / (math.pi / 16))
    x = np.arange(21) - 10
    passed, stopped = ((kernel.sum(axis=0) * np.cos(frequency * x)).sum() for frequency in (0.6, 2.6))
    assert passed == pytest.approx(1, abs=0.15)  # the cut square and the borders ring
    assert stopped == pytest.approx(0, abs=0.15)


def test_drawn_kernels_have_published_sizes_and_stay_within_their_sigma() -> None:
    generator = np.random.default_rng(0)
    kernels = [draw_kernel(replace(FIRST, sinc=0.0), generator) for _ in range(1_500)]
    sizes = Counter(len(kernel) for kernel in kernels)
    assert set(sizes) == set(KERNEL_SIZES)
    assert min(sizes.values()) > 130  # of 187
    assert all(kernel.sum() == pytest.approx(1) and kernel.min() >= 0 for kernel in kernels)
    is_round = sum(np.allclose(kernel, np.rot90(kernel)) for kernel in kernels)
    assert is_round / len(kernels) == pytest.approx(0.45 + 0.12 + 0.12, abs=0.05)


def test_every_tenth_kernel_is_a_sinc() -> None:
    generator = np.random.default_rng(1)
    is_sinc = sum(bool((draw_kernel(FIRST, generator) < -1e-12).any()) for _ in range(2_000))
    assert is_sinc / 2_000 == pytest.approx(0.1, abs=0.03)


def test_filter_keeps_flat_pictures_up_to_their_borders() -> None:
    picture = to_picture(flat(77))
    for kernel in (gaussian_kernel(21, 3, 3, 0), sinc_kernel(21, 1.2)):
        assert np.allclose(filtered(picture, kernel), picture, atol=1e-5)


def test_gaussian_noise_has_its_deviation_and_is_gray_when_asked() -> None:
    picture = np.full((200, 200, 3), 0.5, dtype=np.float32)
    color = gaussian_noise(picture, 20, gray=False, generator=np.random.default_rng(0)) - picture
    gray = gaussian_noise(picture, 20, gray=True, generator=np.random.default_rng(0)) - picture
    assert color.std() * 255 == pytest.approx(20, rel=0.02)
    assert gray.std() * 255 == pytest.approx(20, rel=0.02)
    assert np.ptp(gray, axis=2).max() == pytest.approx(0, abs=1e-6)
    assert abs(np.corrcoef(color[..., 0].ravel(), color[..., 1].ravel())[0, 1]) < 0.02
    bright = gaussian_noise(np.ones_like(picture), 20, gray=False, generator=np.random.default_rng(0))
    assert bright.max() == 1


def test_poisson_noise_grows_with_the_root_of_the_light() -> None:
    # 256 levels make 256 photons of full white: the variance of level x is x * scale^2 / 256.
    levels = np.repeat(to_picture(np.arange(256, dtype=np.uint8)), 400).reshape(256, 400, 1).repeat(3, axis=2)
    noise = poisson_noise(levels, 0.5, gray=False, generator=np.random.default_rng(2)) - levels
    for level in (64, 128):
        assert noise[level - 8 : level + 8].var() == pytest.approx(level / 255 * 0.25 / 256, rel=0.05)
    gray = poisson_noise(levels, 0.5, gray=True, generator=np.random.default_rng(2)) - levels
    assert np.ptp(gray[20:200], axis=2).max() == pytest.approx(0, abs=1e-6)


def test_poisson_noise_of_a_flat_picture_counts_single_photons() -> None:
    # One level makes one photon: x + k - x is a whole number, clipped to one.
    picture = np.full((50, 50, 3), 102 / 255, dtype=np.float32)
    noisy = poisson_noise(picture, 1.0, gray=False, generator=np.random.default_rng(3))
    assert set(np.unique(noisy.round(4))) == {0.0, 1.0}
    assert (noisy == 0).mean() == pytest.approx(math.exp(-0.4), abs=0.02)


def test_jpeg_loses_more_at_lower_quality_and_keeps_the_colors_in_place() -> None:
    picture = to_picture(scene())
    errors = [float(np.abs(jpeg(picture, quality) - picture).mean()) for quality in (30, 60, 95)]
    assert errors[0] > errors[1] > errors[2] > 0
    red = np.zeros((16, 16, 3), dtype=np.float32)
    red[..., 0] = 1
    assert jpeg(red, 95)[8, 8] == pytest.approx((1, 0, 0), abs=0.02)


@pytest.mark.parametrize("scale", [1, 2, 4])
@pytest.mark.parametrize("degradation", [RealESRGAN(0.08), Seams()])
def test_sizes_and_reproducibility(degradation: Degradation, scale: int) -> None:
    pixels = scene()
    first, again, other = (degradation(pixels, scale, np.random.default_rng(seed)) for seed in (0, 0, 1))
    assert first.shape == (96 // scale, 128 // scale, 3)
    assert first.dtype == np.uint8
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


Call = tuple[str, Any]  # what OpenCV did, and the size that came of it or the quality


def calls_of(monkeypatch: pytest.MonkeyPatch, degradation: Degradation, pixels: Pixels, seeds: int) -> list[list[Call]]:
    """Return OpenCV's calls while pictures are degraded: a kernel, a resize, a JPEG."""
    made: list[Call] = []
    blur, resize, encode = cv2.filter2D, cv2.resize, cv2.imencode

    def filtered(picture: Any, depth: int, kernel: Any, **more: Any) -> Any:
        made.append(("blur", len(kernel)))
        return blur(picture, depth, kernel, **more)

    def resized(picture: Any, size: tuple[int, int], **more: Any) -> Any:
        made.append(("resize", size))
        return resize(picture, size, **more)

    def encoded(suffix: str, picture: Any, parameters: Any) -> Any:
        made.append(("jpeg", parameters[1]))
        return encode(suffix, picture, parameters)

    for name, spy in (("filter2D", filtered), ("resize", resized), ("imencode", encoded)):
        monkeypatch.setattr(cv2, name, spy)
    found = []
    for seed in range(seeds):
        degradation(pixels, 1, np.random.default_rng(seed))
        found.append(list(made))
        made.clear()
    return found


def test_rounds_follow_each_other_and_the_last_filter_stands_before_or_behind_the_last_jpeg(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runs = calls_of(monkeypatch, RealESRGAN(0.06), flat(100, 32, 32), 800)
    orders = Counter(" ".join(name for name, _ in calls) for calls in runs)
    first, ends = "blur resize jpeg", ("resize blur jpeg", "jpeg resize blur")
    shares = {f"{first} {second} {end}": share / 2 for end in ends for second, share in SECOND_ROUNDS.items()}
    assert {order: count / 800 for order, count in orders.items()} == pytest.approx(shares, abs=0.05)
    final = [[size for name, size in calls if name == "blur"][-1] for calls in runs]
    assert sum(size > 1 for size in final) / 800 == pytest.approx(0.8, abs=0.05)
    qualities = [quality for calls in runs for name, quality in calls if name == "jpeg"]
    assert (min(qualities), max(qualities)) == (30, 94)  # of [30, 95), rounded down


def test_pictures_grow_shrink_and_stay_in_the_published_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = calls_of(monkeypatch, RealESRGAN(0.06, first=RESIZED[0], second=RESIZED[1]), flat(100, 100, 100), 800)
    sizes = [[size for name, size in calls if name == "resize"] for calls in runs]
    assert {tuple(each[2]) for each in sizes} == {(100, 100)}, "at last it has the size that it had"
    for number, (shares, least, most) in enumerate((((0.2, 0.7, 0.1), 15, 150), ((0.3, 0.4, 0.3), 30, 120))):
        drawn = [each[number] for each in sizes]
        assert all(width == height for width, height in drawn)
        sides = np.array([width for width, _ in drawn])
        # A factor just below one is rounded down, one just above to one: a side of 100 may have grown a little.
        found = [(sides > 100).mean(), (sides < 100).mean(), (sides == 100).mean()]
        assert found == pytest.approx(shares, abs=0.05)
        assert least <= sides.min() <= least + 1
        assert most - 2 <= sides.max() <= most


def test_published_degradation_keeps_the_scene_and_destroys_detail() -> None:
    pixels = scene()
    psnr = []
    for seed in range(30):
        out = RealESRGAN(0.06)(pixels, 1, np.random.default_rng(seed)).astype(float)
        psnr.append(10 * math.log10(255**2 / ((out - pixels) ** 2).mean()))
        assert abs(out.mean() - pixels.mean()) < 0.06 * pixels.mean() + 0.05 * 255 + 8
    assert 12 < min(psnr)
    assert 17 < np.mean(psnr) < 30


def edge(pixels: Pixels) -> float:
    """Return the steepest step across the red rectangle's upper border."""
    column: NDArray[np.float64] = pixels[12:36, 48, 0].astype(float)
    return float(np.abs(np.diff(column)).max())


def test_seams_shift_light_and_color_but_keep_edges() -> None:
    pixels = scene()
    tints = []
    for seed in range(200):
        out = Seams()(pixels, 1, np.random.default_rng(seed))
        assert edge(out) > 0.4 * edge(pixels)
        shift = (out.astype(float) - pixels).mean(axis=(0, 1))
        tints.append(shift[0] - shift[1])
        assert abs(shift).max() < 0.08 * 255 + 0.05 * 255 + 0.04 * 255
    assert np.ptp(tints) > 0.08 * 255  # each channel moves by up to 4 % to either side
