"""Masks: which part of a picture is to be painted, white, and what is known and stays, black.

A client's mask is any picture, read as shades of gray. Where it is opaque it counts as it looks; where it is
transparent it counts as white (`decode_image`), which is what a hole in a picture means elsewhere.
"""

import numpy as np
import numpy.typing as npt
from PIL import Image

from shared.contracts import FieldProblem, Outpaint
from shared.errors import InvalidRequest
from shared.media.headers import ImageLimits

Pixels = npt.NDArray[np.uint8]

PAINTED_FROM = 125  # LLMGA.md §4: from this value on, a pixel is painted
PAINTED = 255


def mask_of(pixels: Pixels) -> Pixels:
    """Return a picture, uint8 (h, w, 3), as a mask, uint8 (h, w)."""
    return np.array(Image.fromarray(pixels).convert("L"))


def check_mask(mask: Pixels, width: int, height: int) -> None:
    """Refuse a mask that does not belong to a picture of this size, or paints nothing.

    Raises:
        InvalidRequest: it does not.
    """
    if mask.shape != (height, width):
        message = f"is {mask.shape[1]}x{mask.shape[0]} pixels, the image {width}x{height}; both must have one size"
        problem = FieldProblem(field="mask", code="wrong_size", message=message)
        raise InvalidRequest("The mask is not of the size of the image.", errors=[problem])
    if not (mask >= PAINTED_FROM).any():
        message = f"has no pixel of {PAINTED_FROM} or more, so that nothing would be painted; white is painted"
        problem = FieldProblem(field="mask", code="nothing_to_paint", message=message)
        raise InvalidRequest("The mask keeps the whole image.", errors=[problem])


def check_canvas(width: int, height: int, outpaint: Outpaint, limits: ImageLimits | None = None) -> None:
    """Refuse an extension that makes a picture larger than pictures may be.

    Raises:
        InvalidRequest: it does.
    """
    limits = limits or ImageLimits()
    wide, high = width + outpaint.left + outpaint.right, height + outpaint.top + outpaint.bottom
    if max(wide, high) > limits.max_side_px or wide * high > limits.max_pixels:
        message = (
            f"makes a picture of {wide}x{high} pixels; at most {limits.max_side_px} on a side and "
            f"{limits.max_pixels:,} in all are taken"
        )
        problem = FieldProblem(field="outpaint", code="too_large", message=message)
        raise InvalidRequest("The extended picture would be too large.", errors=[problem])


def extended(pixels: Pixels, outpaint: Outpaint) -> tuple[Pixels, Pixels]:
    """Return a picture on a larger canvas, black around it, and the mask of what there is to be painted.

    canvas: uint8 (top + h + bottom, left + w + right, 3); mask: uint8 of the same height and width.
    """
    around = ((outpaint.top, outpaint.bottom), (outpaint.left, outpaint.right))
    mask = np.pad(np.zeros(pixels.shape[:2], np.uint8), around, constant_values=PAINTED)
    return np.pad(pixels, (*around, (0, 0))), mask
