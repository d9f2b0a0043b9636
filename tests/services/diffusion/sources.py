"""Pictures to start from, for the tests: random but smooth, with masks that fit no grid."""

import numpy as np
from PIL import Image

from services.diffusion.sources import Mask, Pixels, Source
from shared.artifacts import FolderStore
from shared.contracts import OutputFormat
from shared.jobs import DEFAULT_TENANT
from shared.media import encode_image


def picture(width: int, height: int, seed: int = 0) -> Pixels:
    """Return a picture of soft blotches."""
    coarse = np.random.default_rng(seed).integers(0, 256, (max(1, height // 8), max(1, width // 8), 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def oval(width: int, height: int) -> Mask:
    """Return a mask whose border meets the latents' grid nowhere."""
    y, x = np.mgrid[:height, :width]
    inside: Mask = ((x - width * 0.55) / (width * 0.3)) ** 2 + ((y - height * 0.4) / (height * 0.27)) ** 2 < 1
    return inside


def source(size: tuple[int, int] = (64, 64), *, strength: float = 1.0, masked: bool = True, seed: int = 0) -> Source:
    """Return a source of this (width, height)."""
    return Source(picture(*size, seed), oval(*size) if masked else None, strength)


def near(mask: Pixels, band_px: int) -> Mask:
    """Return where something that is not black is so near, in rows and in columns."""
    height, width = mask.shape
    padded = np.pad(mask > 0, band_px)
    reach = range(2 * band_px + 1)
    rows = np.any([padded[down : down + height] for down in reach], axis=0)
    found: Mask = np.any([rows[:, right : right + width] for right in reach], axis=0)
    return found


def keep(store: FolderStore, pixels: Pixels) -> str:
    """Return the id of a picture that is in the store."""
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[..., None], 3, axis=2)
    return store.put(encode_image(pixels, OutputFormat.PNG, {}), "image/png", tenant=DEFAULT_TENANT).id
