"""Picture files inside JSON: base64 (RFC 4648 §4), bare or as a data URI (RFC 2397)."""

import base64
import binascii
import re

from shared.errors import InvalidImage
from shared.media.headers import ImageLimits

_PIECE_BYTES = 3 * 524_288  # encoded in three milliseconds, in which no other thread has its turn
_DATA_URI = re.compile(r"data:image/[a-z0-9.+-]{1,32};base64,", re.IGNORECASE)
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]{1,15}://")
_WHITE_SPACE = str.maketrans("", "", " \t\r\n")  # line breaks that `base64` and mail programs put in


def inline_bytes(text: str, limits: ImageLimits | None = None) -> bytes:
    """Return the file that a text holds; whether it is a picture is for `decode_image` to find out.

    Raises:
        InvalidImage: the text is neither base64 nor a data URI of a picture, or holds more than the limit.
    """
    limits = limits or ImageLimits()
    if head := _DATA_URI.match(text):
        text = text[head.end() :]
    elif text[:5].lower() == "data:":
        raise InvalidImage(
            "The data URI is not one of a picture in base64.",
            next_step="Send `data:image/png;base64,` (or jpeg, webp) and the file in base64.",
        )
    elif _ADDRESS.match(text):
        raise InvalidImage(
            "The picture is given by its address, and addresses are not fetched.",
            next_step="Send the file itself: in base64, as a data URI, or uploaded.",
        )
    text = text.translate(_WHITE_SPACE)
    if len(text) // 4 * 3 > limits.max_bytes + 2:
        raise InvalidImage(
            f"The picture's file has more than {limits.max_bytes:,} bytes.",
            next_step="Send it smaller: scaled down, or as JPEG or WebP.",
        )
    try:
        return binascii.a2b_base64(text, strict_mode=True)
    except (binascii.Error, ValueError):
        raise InvalidImage(
            "The picture is not in base64.",
            next_step="Encode the file in base64 with its padding (RFC 4648 §4), or send it as a data URI.",
        ) from None


def inline_text(data: bytes) -> str:
    """Return a file in base64."""
    pieces = (data[start : start + _PIECE_BYTES] for start in range(0, len(data), _PIECE_BYTES))
    return b"".join(base64.b64encode(piece) for piece in pieces).decode()
