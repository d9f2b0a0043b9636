"""Pictures brought to the size that Stable Diffusion learns, and SDXL's six numbers that tell what was done to them.

As stage 2 does it (LLMGA.md §7.3): the shorter side is resized bilinearly, a square is cut out of the middle or
anywhere, and half of the pictures are mirrored. The numbers are those of the mirrored picture: its original size, the
corner of the crop in the resized picture, and the size that was aimed at.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

Pixels = npt.NDArray[np.uint8]  # (height, width, 3)


@dataclass(frozen=True, slots=True)
class Cropped:
    """A picture of the target size. Sizes are (height, width) and corners (top, left), in pixels."""

    pixels: Pixels
    original: tuple[int, int]
    corner: tuple[int, int]

    def time_ids(self) -> tuple[int, int, int, int, int, int]:
        """Return SDXL's micro-conditions: original size, crop's corner, target size (LLMGA.md §7.3)."""
        height, width = self.pixels.shape[:2]
        return (*self.original, *self.corner, height, width)


def crop_to(pixels: Pixels, side: int, *, random_crop: bool, flip: bool, generator: np.random.Generator) -> Cropped:
    """Return a square picture of this side."""
    height, width = pixels.shape[:2]
    scale = side / min(height, width)
    resized_height, resized_width = max(side, int(height * scale)), max(side, int(width * scale))
    if (resized_height, resized_width) != (height, width):
        picture = Image.fromarray(pixels).resize((resized_width, resized_height), Image.Resampling.BILINEAR)
        resized: Pixels = np.asarray(picture, np.uint8)
    else:
        resized = pixels
    down, right = resized_height - side, resized_width - side
    if random_crop:
        top, left = int(generator.integers(down, endpoint=True)), int(generator.integers(right, endpoint=True))
    else:
        top, left = round(down / 2), round(right / 2)  # as torchvision's CenterCrop
    cut = resized[top : top + side, left : left + side]
    if flip and generator.random() < 0.5:
        cut = cut[:, ::-1]
        left = right - left
    return Cropped(np.ascontiguousarray(cut), (height, width), (top, left))
