"""Pictures of the training data: decoded, brought to a shape, and made into what CLIP's tower takes.

Files are decoded by the code that serving uses: gray, palettes, CMYK and 16 bits become sRGB, transparency is laid over
white, and what is damaged or huge is refused by name. A file that appears in millions of items is read each time.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image

from services.mllm.pictures import Pixels, picture_of
from shared.errors import InvalidImage
from shared.media import ImageLimits, decode_image
from training.data.formats import DataError

# One process decodes a few at a time; a file beyond this is a mistake in the data.
LIMITS = ImageLimits(max_bytes=64 * 1024 * 1024, max_pixels=100_000_000, max_side_px=20_000)
MAX_RATIO = 50  # of the sides: a strip whose short side grows to 1,024 pixels takes 157 MB then, and more beyond this

Shaping = Literal["stage1", "as_is", "squared"]
"""How a picture is shaped before CLIP's own steps: as stage 1 has them (LLMGA.md §7.2), not at all (§7.1), or stretched
to a square of its own longer side, which is what serving does."""
SIDE = 512  # pixels, of stage 1


def load(image: Path | Pixels) -> Pixels:
    """Return a picture as uint8 (h, w, 3).

    Raises:
        DataError: the file is no picture, is damaged, is beyond the limits, or is a strip.
    """
    if not isinstance(image, Path):
        return image
    try:
        pixels = decode_image(image.read_bytes(), LIMITS)
    except OSError as error:
        raise DataError(f"{image}: it cannot be read ({error.strerror}). Fetch the picture again.") from None
    except InvalidImage as error:
        raise DataError(f"{image}: {error.detail} Fetch or convert it, or use `on_error: skip`.") from None
    height, width = pixels.shape[:2]
    if max(height, width) > MAX_RATIO * min(height, width):
        raise DataError(
            f"{image}: The picture is {width}x{height} pixels, one side more than {MAX_RATIO} times the other. Cut it, "
            "or use `on_error: skip`."
        )
    return pixels


def shaped(pixels: Pixels, shaping: Shaping, *, path: Path | None = None, side: int = SIDE) -> Pixels:
    """Return a picture in the shape that it is learned in.

    Stage 1: `side` x `side`, whatever the aspect ratio; where the path speaks of "laion", the shorter side `side` and
    its center.
    """
    height, width = pixels.shape[:2]
    if shaping == "as_is":
        return pixels
    if shaping == "squared":
        return picture_of(pixels).pixels
    if path is None or "laion" not in str(path):
        return _resized(pixels, side, side)
    scale = side / min(height, width)
    pixels = _resized(pixels, max(side, round(height * scale)), max(side, round(width * scale)))
    return _center(pixels, side)


@dataclass(frozen=True)
class TowerInput:
    """What the tower takes: square pictures of `side` pixels, normalized by channel (LLMGA.md §1.4)."""

    side: int
    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)

    @classmethod
    def of(cls, folder: Path) -> "TowerInput":
        """Return what a tower's `preprocessor_config.json` asks for."""
        found = json.loads((folder / "preprocessor_config.json").read_text(encoding="utf-8"))
        crop = found["crop_size"]
        side = crop["height"] if isinstance(crop, dict) else crop
        return cls(int(side), tuple(found["image_mean"]), tuple(found["image_std"]))

    def values(self, pixels: Pixels) -> torch.Tensor:
        """Return a picture as float32 (3, side, side): CLIP's own steps, shorter side, center, normalized."""
        height, width = pixels.shape[:2]
        if (height, width) != (self.side, self.side):
            scale = self.side / min(height, width)
            height, width = max(self.side, int(height * scale)), max(self.side, int(width * scale))
            pixels = _center(_resized(pixels, height, width, Image.Resampling.BICUBIC), self.side)
        mean, std = np.asarray(self.mean, np.float32), np.asarray(self.std, np.float32)
        values = (pixels.astype(np.float32) / 255 - mean) / std
        return torch.from_numpy(values.transpose(2, 0, 1).copy())


def _resized(
    pixels: Pixels, height: int, width: int, resampling: Image.Resampling = Image.Resampling.LANCZOS
) -> Pixels:
    if pixels.shape[:2] == (height, width):
        return pixels
    return np.asarray(Image.fromarray(pixels).resize((width, height), resampling), dtype=np.uint8)


def _center(pixels: Pixels, side: int) -> Pixels:
    top, left = (pixels.shape[0] - side) // 2, (pixels.shape[1] - side) // 2
    return pixels[top : top + side, left : left + side]
