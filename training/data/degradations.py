"""How a painted picture differs from the truth, imitated: what the restoration network learns to undo (LLMGA.md §6.3).

`RealESRGAN` is the published pipeline: blur, resize, noise and JPEG, twice, then a step in contrast and brightness,
which is what makes the seam around a painted hole. `Seams` is the mild version for pictures of flat shapes: the traces
of an autoencoder, and a step in contrast, brightness and color.
Every example draws all its numbers itself, so the published pool of 160 pairs, which mixes examples of batches
that share them, has no counterpart here. Pictures are float32 (h, w, 3), RGB in [0, 1], between the steps.
"""

import math
from dataclasses import dataclass
from typing import Protocol

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

Picture = NDArray[np.float32]
Pixels = NDArray[np.uint8]
Range = tuple[float, float]

KERNEL_SIZES = tuple(range(7, 22, 2))
WIDE_KERNEL = 13  # sinc kernels from this size on may cut lower frequencies
# iso, aniso, generalized iso and aniso, plateau iso and aniso
KERNEL_SHARES = (0.45, 0.25, 0.12, 0.03, 0.12, 0.03)
GENERALIZED_BETA: Range = (0.5, 4.0)
PLATEAU_BETA: Range = (1.0, 2.0)
INTERPOLATIONS = (cv2.INTER_AREA, cv2.INTER_LINEAR, cv2.INTER_CUBIC)


class Degradation(Protocol):
    """Make a worse picture of a good one."""

    def __call__(self, pixels: Pixels, scale: int, generator: np.random.Generator) -> Pixels:
        """Return uint8 (h / scale, w / scale, 3) of uint8 (h, w, 3)."""
        ...


@dataclass(frozen=True, slots=True)
class Order:
    """One round of the pipeline: blur, resize, noise, JPEG."""

    blur: float  # probability
    sigma: Range
    resize: tuple[float, float, float]  # probabilities of up, down, keep
    resize_range: Range
    noise: Range  # standard deviation in levels of 255
    poisson_scale: Range
    sinc: float = 0.1  # probability that the blur is a sinc filter
    gaussian: float = 0.5  # probability of Gaussian noise; else Poisson
    gray: float = 0.4  # probability that the noise is the same in all channels
    jpeg: Range = (30, 95)


FIRST = Order(
    blur=1.0, sigma=(0.2, 3), resize=(0.2, 0.7, 0.1), resize_range=(0.15, 1.5), noise=(1, 30), poisson_scale=(0.05, 3)
)
SECOND = Order(
    blur=0.8,
    sigma=(0.2, 1.5),
    resize=(0.3, 0.4, 0.3),
    resize_range=(0.3, 1.2),
    noise=(1, 25),
    poisson_scale=(0.05, 2.5),
)


@dataclass(frozen=True, slots=True)
class RealESRGAN:
    """The published degradation; `contrast` is e of LLMGA.md §6.3, 0.06 or 0.08 by stage and scale."""

    contrast: float
    brightness: float = 0.05
    final_sinc: float = 0.8
    first: Order = FIRST
    second: Order = SECOND

    def __call__(self, pixels: Pixels, scale: int, generator: np.random.Generator) -> Pixels:
        height, width = (side // scale for side in pixels.shape[:2])
        picture = to_picture(pixels)
        picture = _blurred(picture, self.first, generator)
        factor = _factor(self.first, generator)
        picture = _resized(picture, int(pixels.shape[0] * factor), int(pixels.shape[1] * factor), generator)
        picture = _noised(picture, self.first, generator)
        picture = jpeg(picture, generator.uniform(*self.first.jpeg))
        picture = _blurred(picture, self.second, generator)
        factor = _factor(self.second, generator)
        picture = _resized(picture, int(height * factor), int(width * factor), generator)
        picture = _noised(picture, self.second, generator)
        final = _final_kernel(self.final_sinc, generator)
        quality = generator.uniform(*self.second.jpeg)
        if generator.random() < 0.5:
            picture = filtered(_resized(picture, height, width, generator), final)
            picture = jpeg(picture, quality)
        else:
            picture = jpeg(picture, quality)
            picture = filtered(_resized(picture, height, width, generator), final)
        return to_pixels(_relit(picture, self.contrast, self.brightness, generator))


@dataclass(frozen=True, slots=True)
class Seams:
    """A mild degradation: half of the pictures blurred a little, all noised a little, then relit and tinted."""

    contrast: float = 0.08
    brightness: float = 0.05
    tint: float = 0.04  # brightness of each channel on top
    blur: float = 0.5
    sigma: Range = (0.3, 0.8)
    noise: Range = (0, 4)

    def __call__(self, pixels: Pixels, scale: int, generator: np.random.Generator) -> Pixels:
        picture = to_picture(pixels)
        if generator.random() < self.blur:
            sigma = generator.uniform(*self.sigma)
            picture = filtered(picture, gaussian_kernel(KERNEL_SIZES[0], sigma, sigma, 0.0))
        if scale > 1:
            height, width = (side // scale for side in picture.shape[:2])
            picture = _float(cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA))
        picture = gaussian_noise(picture, generator.uniform(*self.noise), gray=False, generator=generator)
        picture = _relit(picture, self.contrast, self.brightness, generator)
        tint = generator.uniform(-self.tint, self.tint, size=3).astype(np.float32)
        return to_pixels(np.clip(picture + tint, 0, 1))


def relit(picture: Picture, contrast: float, brightness: float) -> Picture:
    """Return clip(x * c + b, 0, 1)."""
    return np.clip(picture * np.float32(contrast) + np.float32(brightness), 0, 1)


def to_picture(pixels: Pixels) -> Picture:
    """Return [0, 1] of 8 bits."""
    return _float(pixels) / np.float32(255)


def to_pixels(picture: Picture) -> Pixels:
    """Round to 8 bits, half to even, clipped."""
    return np.clip(np.rint(picture * 255), 0, 255).astype(np.uint8)


def filtered(picture: Picture, kernel: NDArray[np.float64]) -> Picture:
    """Filter every channel; the picture is mirrored at its borders."""
    return _float(cv2.filter2D(picture, cv2.CV_32F, kernel, borderType=cv2.BORDER_REFLECT_101))


def jpeg(picture: Picture, quality: float) -> Picture:
    """Compress and decompress; quality from 1 to 100 is rounded down."""
    parameters = (cv2.IMWRITE_JPEG_QUALITY, int(quality))
    written, data = cv2.imencode(".jpg", to_pixels(picture)[..., ::-1], parameters)  # OpenCV thinks in BGR
    assert written
    read = cv2.imdecode(data, cv2.IMREAD_COLOR)
    assert read is not None
    return to_picture(np.asarray(read[..., ::-1], dtype=np.uint8))


def gaussian_noise(picture: Picture, sigma: float, *, gray: bool, generator: np.random.Generator) -> Picture:
    """Add noise of `sigma` levels of 255, the same in all channels if gray, and clip."""
    shape = (*picture.shape[:2], 1 if gray else picture.shape[2])
    noise = generator.standard_normal(shape, dtype=np.float32) * np.float32(sigma / 255)
    return np.clip(picture + noise, 0, 1)


def poisson_noise(picture: Picture, scale: float, *, gray: bool, generator: np.random.Generator) -> Picture:
    """Add shot noise, `scale` times as strong as that of as many photons as the picture has levels, and clip.

    The number of photons of full white is the number of different 8-bit values, rounded up to a power of two.
    """
    rounded = to_pixels(_float(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY))[..., None] if gray else picture)
    photons = 2.0 ** math.ceil(math.log2(len(np.unique(rounded))))
    clean = to_picture(rounded)
    noise = generator.poisson(clean * photons).astype(np.float32) / np.float32(photons) - clean
    return np.clip(picture + noise * np.float32(scale), 0, 1)


def sinc_kernel(size: int, cutoff: float) -> NDArray[np.float64]:
    """Return a circular low-pass filter (size, size) that cuts at `cutoff` radians per pixel and adds up to 1."""
    radius = np.hypot(*_offsets(size))
    bessel = torch.special.bessel_j1(torch.from_numpy(cutoff * radius)).numpy()
    with np.errstate(invalid="ignore", divide="ignore"):
        kernel = cutoff * bessel / (2 * np.pi * radius)
    kernel[size // 2, size // 2] = cutoff**2 / (4 * np.pi)  # its limit at the center
    return _normalized(kernel)


def gaussian_kernel(
    size: int, sigma_x: float, sigma_y: float, angle: float, *, beta: float = 1.0, plateau: bool = False
) -> NDArray[np.float64]:
    """Return a rotated Gaussian (size, size) that adds up to 1, or a generalized one by its exponent `beta`.

    With q = x' S^-1 x it is exp(-q^beta / 2), or 1 / (1 + q^beta) with a plateau.
    """
    x, y = _offsets(size)
    along, across = x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)
    q = (along / sigma_x) ** 2 + (across / sigma_y) ** 2
    return _normalized(1 / (1 + q**beta) if plateau else np.exp(-(q**beta) / 2))


def _offsets(size: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    steps = np.arange(size, dtype=np.float64) - size // 2
    x, y = np.meshgrid(steps, steps)
    return x, y


def _normalized(kernel: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(kernel / kernel.sum(), dtype=np.float64)


def _float(picture: object) -> Picture:
    return np.asarray(picture, dtype=np.float32)


def draw_kernel(order: Order, generator: np.random.Generator) -> NDArray[np.float64]:
    """Draw the blur of one round."""
    size = int(generator.choice(KERNEL_SIZES))
    if generator.random() < order.sinc:
        return sinc_kernel(size, generator.uniform(math.pi / 3 if size < WIDE_KERNEL else math.pi / 5, math.pi))
    kind = int(generator.choice(len(KERNEL_SHARES), p=KERNEL_SHARES))
    family, is_anisotropic = divmod(kind, 2)
    sigma_x = generator.uniform(*order.sigma)
    sigma_y, angle = sigma_x, 0.0
    if is_anisotropic:
        sigma_y, angle = generator.uniform(*order.sigma), generator.uniform(-math.pi, math.pi)
    beta = 1.0
    if family:
        # Half of the exponents are below one and half above, however far the range reaches to either side.
        low, high = GENERALIZED_BETA if family == 1 else PLATEAU_BETA
        beta = generator.uniform(low, 1) if generator.random() < 0.5 else generator.uniform(1, high)
    return gaussian_kernel(size, sigma_x, sigma_y, angle, beta=beta, plateau=family == 2)


def _final_kernel(probability: float, generator: np.random.Generator) -> NDArray[np.float64]:
    if generator.random() < probability:
        return sinc_kernel(int(generator.choice(KERNEL_SIZES)), generator.uniform(math.pi / 3, math.pi))
    return np.ones((1, 1))


def _blurred(picture: Picture, order: Order, generator: np.random.Generator) -> Picture:
    return filtered(picture, draw_kernel(order, generator)) if generator.random() < order.blur else picture


def _factor(order: Order, generator: np.random.Generator) -> float:
    """Draw by how much a round resizes."""
    way = int(generator.choice(3, p=order.resize))
    low, high = order.resize_range
    return generator.uniform(1, high) if way == 0 else generator.uniform(low, 1) if way == 1 else 1.0


def _resized(picture: Picture, height: int, width: int, generator: np.random.Generator) -> Picture:
    interpolation = INTERPOLATIONS[int(generator.integers(len(INTERPOLATIONS)))]
    return _float(cv2.resize(picture, (max(1, width), max(1, height)), interpolation=interpolation))


def _noised(picture: Picture, order: Order, generator: np.random.Generator) -> Picture:
    is_gaussian, gray = generator.random() < order.gaussian, bool(generator.random() < order.gray)
    if is_gaussian:
        return gaussian_noise(picture, generator.uniform(*order.noise), gray=gray, generator=generator)
    return poisson_noise(picture, generator.uniform(*order.poisson_scale), gray=gray, generator=generator)


def _relit(picture: Picture, contrast: float, brightness: float, generator: np.random.Generator) -> Picture:
    c, b = generator.uniform(1 - contrast, 1 + contrast), generator.uniform(-brightness, brightness)
    return relit(picture, c, b)
