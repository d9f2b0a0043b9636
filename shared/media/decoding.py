"""Untrusted picture files become arrays: upright, sRGB, opaque, without metadata.

Of an animation the first frame is taken. 16-bit samples are reduced to 8 bits, CMYK and palettes become RGB,
transparency is laid over white. An embedded color profile is applied when it can be read and fits the
pixels; one that cannot is ignored, as browsers do.
"""

import io
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageCms

from shared.contracts import OutputFormat
from shared.errors import InvalidImage
from shared.media.headers import ImageLimits, damaged, read_header

# One plug-in per format; Pillow opens a JPEG with several pictures in it (MPO, most phones) as the first of
# them.
_PILLOW_FORMATS = {OutputFormat.PNG: "PNG", OutputFormat.JPEG: "JPEG", OutputFormat.WEBP: "WEBP"}
_ORIENTATION = 0x0112  # EXIF 3.0 §4.6.5: how the stored picture must be turned to be upright
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_MAX_PROFILE_BYTES = 4 * 1024 * 1024  # printers' CMYK profiles have up to 3 MB
_ROWS_AT_ONCE = 256
_PROFILE_MODES = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK"}

_log = logging.getLogger("llmga.media")


def decode_image(data: bytes, limits: ImageLimits | None = None) -> npt.NDArray[np.uint8]:
    """Decode a PNG, JPEG or WebP file to uint8 (height, width, 3), sRGB, upright.

    Raises:
        InvalidImage: the data are something else, are damaged, or exceed a limit.
    """
    with _decoded(data, limits) as image:
        color, alpha = _split(image)
        color = _to_srgb(color, image.info.get("icc_profile"))
        if alpha is not None:
            white = Image.new("RGB", color.size, "white")
            white.paste(color, mask=alpha)
            color = white
        return np.array(_upright(color, image), dtype=np.uint8)


def decode_opacity(data: bytes, limits: ImageLimits | None = None) -> npt.NDArray[np.uint8] | None:
    """Decode how opaque a picture is: uint8 (height, width), upright, 0 where it is see-through.

    Returns None for a picture that cannot be see-through anywhere.

    Raises:
        InvalidImage: as for `decode_image`.
    """
    with _decoded(data, limits) as image:
        _, alpha = _split(image)
        return None if alpha is None else np.array(_upright(alpha, image), dtype=np.uint8)


@contextmanager
def _decoded(data: bytes, limits: ImageLimits | None) -> Iterator[Image.Image]:
    """Yield the decoded picture; whatever goes wrong with it in the block is `InvalidImage`."""
    header = read_header(data, limits)
    try:
        with Image.open(io.BytesIO(data), formats=[_PILLOW_FORMATS[header.format]]) as image:
            if image.size != (header.width, header.height):
                raise damaged(header.format, "its headers contradict each other")
            image.load()
            yield image
    except (InvalidImage, MemoryError):
        raise
    except Exception as error:  # a decoder may raise anything on hostile data; its words stay in the log
        _log.info("a picture could not be decoded", exc_info=error)
        raise damaged(header.format, "its pixels cannot be decoded") from error


def _upright(pixels: Image.Image, image: Image.Image) -> Image.Image:
    """Turn what was made of a picture as the picture must be turned."""
    orientation = _orientation(image)
    return pixels.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else pixels


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # hostile EXIF is no reason to refuse good pixels
        return 1


def _split(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """Return the colors as L, RGB or CMYK, and the opacity as L if there is any."""
    if image.mode.startswith("I"):  # 16-bit gray
        return Image.fromarray(_eight_bits(np.asarray(image))), None
    if image.mode in {"RGBA", "LA", "PA", "RGBa", "La"} or "transparency" in image.info:
        whole = image.convert("RGBA")
        return whole.convert("RGB"), whole.getchannel("A")
    if image.mode in {"L", "RGB", "CMYK"}:
        return image, None
    return image.convert("L" if image.mode == "1" else "RGB"), None


def _eight_bits(samples: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Return 16-bit samples in 8 bits, some rows at a time, because what is computed takes eight times the memory."""
    reduced = np.empty(samples.shape, np.uint8)
    for row in range(0, len(samples), _ROWS_AT_ONCE):
        rows = slice(row, row + _ROWS_AT_ONCE)
        reduced[rows] = np.clip(np.rint(samples[rows] / 257), 0, 255)  # 65,535 / 255
    return reduced


def _to_srgb(color: Image.Image, profile: object) -> Image.Image:
    if isinstance(profile, bytes) and 0 < len(profile) <= _MAX_PROFILE_BYTES:
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            mode = _PROFILE_MODES.get(source.profile.xcolor_space)
            if mode == "L" and color.mode == "RGB":
                color = color.convert("L")  # gray pixels with transparency came as RGB
            if mode == color.mode:
                target = ImageCms.createProfile("sRGB")
                converted = ImageCms.profileToProfile(color, source, target, outputMode="RGB")
                if converted is not None:
                    return converted
        except MemoryError:
            raise
        except Exception as error:
            _log.info("a color profile was ignored", exc_info=error)
    return color.convert("RGB")
