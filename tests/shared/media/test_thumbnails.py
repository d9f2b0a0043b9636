"""Small pictures fit their bytes, whatever they show."""

import io

import numpy as np
import pytest
from PIL import Image

from shared.media import encode_thumbnail


def noise(side: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)


@pytest.mark.parametrize("max_bytes", [12_000, 3_000, 1_024])
def test_even_noise_fits_the_bytes(max_bytes: int) -> None:
    data, width, height = encode_thumbnail(noise(256), max_bytes)
    assert len(data) <= max_bytes
    with Image.open(io.BytesIO(data), formats=["JPEG"]) as image:
        assert image.size == (width, height)


def test_a_picture_that_fits_keeps_its_size_and_its_colors() -> None:
    pixels = np.zeros((48, 96, 3), np.uint8)
    pixels[:, 48:] = (250, 40, 10)
    data, width, height = encode_thumbnail(pixels, 12_000)
    assert (width, height) == (96, 48)
    with Image.open(io.BytesIO(data)) as image:
        assert np.abs(np.asarray(image)[:, 64:].astype(int) - pixels[:, 64:]).max() <= 4


def test_fewer_bytes_than_an_empty_jpeg_are_refused() -> None:
    with pytest.raises(ValueError, match="1024"):
        encode_thumbnail(noise(8), 600)
