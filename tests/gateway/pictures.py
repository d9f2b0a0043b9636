"""Small pictures to send."""

import base64
import io

import numpy as np
import numpy.typing as npt
from PIL import Image


def pixels_of(width: int = 24, height: int = 16, seed: int = 0) -> npt.NDArray[np.uint8]:
    """Return random pixels, the same for the same seed."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def file_of(pixels: npt.NDArray[np.uint8], kind: str = "PNG") -> bytes:
    """Return the pixels as a file of Pillow's, without loss."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **({"lossless": True} if kind == "WEBP" else {}))
    return file.getvalue()


def base64_of(data: bytes) -> str:
    """Return the bytes in base64."""
    return base64.b64encode(data).decode()
