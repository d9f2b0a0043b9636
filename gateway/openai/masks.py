"""OpenAI's masks: what is to be repainted is see-through in them. Ours are white there.

A half transparent pixel is half repainted, as in our own masks.
"""

import numpy as np
import numpy.typing as npt

from shared.contracts import FieldProblem
from shared.errors import InvalidRequest
from shared.media import decode_opacity

_OPAQUE = 255


def mask_pixels(data: bytes, field: str) -> npt.NDArray[np.uint8]:
    """Return uint8 (height, width, 3), white where the picture of the file is see-through.

    Raises:
        InvalidImage: the file is no picture, or exceeds a limit.
        InvalidRequest: nothing in it is see-through; `field` is the field that it came in.
    """
    opacity = decode_opacity(data)
    if opacity is None or opacity.min() == _OPAQUE:
        detail = "The mask leaves nothing to be repainted; without one, the picture is edited as a whole."
        problem = FieldProblem(field=field, code="nothing_to_paint", message="nothing in it is transparent")
        raise InvalidRequest(detail, errors=[problem])
    return np.repeat((_OPAQUE - opacity)[..., None], 3, axis=2)
