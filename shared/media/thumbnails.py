"""Small pictures of bounded size, for events: JPEG, as good as the bytes allow."""

import io

import numpy as np
import numpy.typing as npt
from PIL import Image

_QUALITIES = (90, 75, 50, 30)
_MIN_BYTES = 1_024  # a JPEG's own tables take about 600


def encode_thumbnail(pixels: npt.NDArray[np.uint8], max_bytes: int) -> tuple[bytes, int, int]:
    """Return a JPEG of pixels (height, width, 3) in at most `max_bytes`, and its width and height.

    Quality is given up first, then size: half of each side at a time.

    Raises:
        ValueError: `max_bytes` is below what a JPEG takes in any case.
    """
    if max_bytes < _MIN_BYTES:
        raise ValueError(f"a JPEG takes up to {_MIN_BYTES} bytes")
    picture = Image.fromarray(pixels)
    while True:
        for quality in _QUALITIES:
            file = io.BytesIO()
            picture.save(file, "JPEG", quality=quality, optimize=True)
            if file.tell() <= max_bytes:
                return file.getvalue(), picture.width, picture.height
        picture = picture.resize((max(1, picture.width // 2), max(1, picture.height // 2)), Image.Resampling.BOX)
