"""Pictures as the language model sees them: squared, with what is to be painted in black.

LLMGA stretches a picture to a square of its longer side before CLIP's own steps (LLMGA.md §4), so that the
center crop that follows takes nothing away. CLIP's steps are the server's, by the checkpoint's
`preprocessor_config.json`.
"""

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from shared.media import PAINTED_FROM

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Picture:
    """What the language model sees.

    pixels: uint8 (side, side, 3), sRGB.
    key: a name for exactly these pixels, under which the server keeps what it has computed for them.
    """

    pixels: Pixels
    key: str


def picture_of(pixels: Pixels, *, mask: Pixels | None = None) -> Picture:
    """Return an sRGB picture as the language model is to see it.

    pixels: uint8 (h, w, 3); mask: uint8 (h, w), where values from 125 on are blackened.

    Raises:
        ValueError: the shapes or types are others.
    """
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        raise ValueError("pixels must be uint8 (h, w, 3)")
    if mask is not None:
        if mask.dtype != np.uint8 or mask.shape != pixels.shape[:2]:
            raise ValueError("the mask must be uint8 and as high and wide as the picture")
        pixels = np.where((mask >= PAINTED_FROM)[..., None], np.uint8(0), pixels)
    height, width = pixels.shape[:2]
    side = max(height, width)
    if height != width:
        image = Image.fromarray(pixels).resize((side, side), Image.Resampling.LANCZOS)
        pixels = np.asarray(image, dtype=np.uint8)
    pixels = np.ascontiguousarray(pixels)
    # A square's side follows from the number of its bytes, so these alone name it.
    return Picture(pixels, hashlib.sha256(pixels.data).hexdigest())
