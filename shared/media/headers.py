"""What a picture's file says of itself, read without decoding it: kind, size in pixels, frames and scans.

Every length in the file is checked against the bytes that are there, so that any input ends in a `Header` or
in `InvalidImage`. Sources: PNG (Third Edition) §5, §11; JPEG (ITU-T T.81) §B; WebP (RFC 9649) §2.
"""

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from shared.contracts import OutputFormat
from shared.errors import InvalidImage

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# The next marker behind entropy-coded data: 0xFF there is followed by 0x00 or a restart marker.
_JPEG_MARKER = re.compile(rb"\xff([^\x00\xff\xd0-\xd7])", re.DOTALL)
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # SOFn; the three others are tables
_JPEG_END, _JPEG_SCAN = 0xD9, 0xDA


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """The largest picture that is taken."""

    max_bytes: int = 16 * 1024 * 1024
    max_pixels: int = 4_096 * 4_096  # 50 MB as 8-bit RGB
    max_side_px: int = 8_192
    max_frames: int = 256  # of an animation only the first is used; more than this is a film, sent by mistake
    max_scans: int = 64  # of a progressive JPEG; each costs a pass over all pixels, and usual files have ten


@dataclass(frozen=True, slots=True)
class Header:
    """A picture's format and size. `frames` and `scans` are 1 for an ordinary picture."""

    format: OutputFormat
    width: int
    height: int
    frames: int = 1
    scans: int = 1


def read_header(data: bytes, limits: ImageLimits | None = None) -> Header:
    """Return the header of a PNG, JPEG or WebP file that keeps within the limits.

    Raises:
        InvalidImage: another kind of file, a damaged one, or one above a limit.
    """
    limits = limits or ImageLimits()
    if not data:
        raise InvalidImage("The picture is empty: it has no bytes.")
    if len(data) > limits.max_bytes:
        raise InvalidImage(
            f"The picture's file has {len(data):,} bytes; at most {limits.max_bytes:,} are taken.",
            next_step="Send it smaller: scaled down, or as JPEG or WebP.",
        )
    if data.startswith(PNG_SIGNATURE):
        header = _png(data)
    elif data.startswith(b"\xff\xd8\xff"):
        header = _jpeg(data)
    elif data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        header = _webp(data)
    else:
        raise InvalidImage(
            "The data are not a PNG, JPEG or WebP file; the content decides, not the name.",
            next_step="Convert the picture to PNG, JPEG or WebP and send that.",
        )
    _check(header, limits)
    return header


def _check(header: Header, limits: ImageLimits) -> None:
    width, height = header.width, header.height
    if not width or not height:
        raise InvalidImage("The picture has a side of 0 pixels.", next_step="Send a picture with pixels.")
    if max(width, height) > limits.max_side_px or width * height > limits.max_pixels:
        raise InvalidImage(
            f"The picture is {width}x{height} pixels; at most {limits.max_side_px} on a side and "
            f"{limits.max_pixels:,} in all are taken.",
            next_step="Scale the picture down and send it again.",
        )
    if header.frames > limits.max_frames:
        raise InvalidImage(
            f"The picture is an animation of {header.frames} frames; at most {limits.max_frames} are taken.",
            next_step="Send the one frame that you mean as a picture of its own.",
        )
    if header.scans > limits.max_scans:
        raise InvalidImage(
            f"The JPEG file has {header.scans} scans; at most {limits.max_scans} are taken.",
            next_step="Save it as an ordinary (baseline) JPEG and send that.",
        )


def damaged(kind: OutputFormat, what: str) -> InvalidImage:
    """Return the error for a file of the right kind that is broken."""
    return InvalidImage(
        f"The {kind.value.upper() if kind is not OutputFormat.WEBP else 'WebP'} file is damaged: {what}.",
        next_step="Open the picture in an image program, save it again and send that.",
    )


def png_chunks(data: bytes) -> Iterator[tuple[bytes, memoryview]]:
    """Yield (type, content) of each PNG chunk, up to the first that is cut off."""
    view = memoryview(data)
    position = len(PNG_SIGNATURE)
    while position + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        end = position + 8 + length
        if end + 4 > len(data):
            return
        yield kind, view[position + 8 : end]
        position = end + 4


def _png(data: bytes) -> Header:
    kind = OutputFormat.PNG
    chunks = png_chunks(data)
    name, content = next(chunks, (b"", memoryview(b"")))
    if name != b"IHDR" or len(content) != 13:
        raise damaged(kind, "its header is missing")
    width, height = struct.unpack_from(">II", content)
    needs_palette = content[9] == 3
    frames = 1
    for name, content in chunks:
        if name == b"PLTE":
            needs_palette = False
        if name == b"IDAT" and needs_palette:
            raise damaged(kind, "its palette is missing")
        if name == b"acTL" and len(content) == 8:
            frames = max(1, struct.unpack_from(">I", content)[0])
        if name == b"IEND":
            return Header(kind, width, height, frames)
    raise damaged(kind, "it ends too early")


def _jpeg(data: bytes) -> Header:
    kind = OutputFormat.JPEG
    size: tuple[int, int] | None = None
    scans = 0
    position = 2
    while (found := _JPEG_MARKER.search(data, position)) is not None:
        marker = found[1][0]
        position = found.end()
        if marker == _JPEG_END:
            if size is None or not scans:
                raise damaged(kind, "it has no picture in it")
            return Header(kind, *size, scans=scans)
        if marker in {0x01, 0xD8}:  # TEM and SOI stand alone
            continue
        if position + 2 > len(data):
            break
        (length,) = struct.unpack_from(">H", data, position)
        if length < 2 or position + length > len(data):
            break
        if marker in _JPEG_FRAMES:
            if size is not None or length < 8:
                raise damaged(kind, "its frame header makes no sense")
            height, width = struct.unpack_from(">HH", data, position + 3)
            size = width, height
        elif marker == _JPEG_SCAN:
            scans += 1
        position += length
    raise damaged(kind, "it ends too early")


def _webp(data: bytes) -> Header:
    kind = OutputFormat.WEBP
    (riff_bytes,) = struct.unpack_from("<I", data, 4)
    if riff_bytes + 8 > len(data):
        raise damaged(kind, "it ends too early")
    canvas: tuple[int, int] | None = None
    still: tuple[int, int] | None = None
    frames = 0
    position, end = 12, riff_bytes + 8
    while position + 8 <= end:
        name, length = struct.unpack_from("<4sI", data, position)
        content = data[position + 8 : min(position + 8 + length, position + 18)]
        if position + 8 + length > end:
            raise damaged(kind, "it ends too early")
        if name == b"VP8X" and length >= 10:
            canvas = _uint24(content, 4) + 1, _uint24(content, 7) + 1
        elif name == b"ANMF":
            frames += 1
        elif name == b"VP8 " and length >= 10 and content[3:6] == b"\x9d\x01\x2a":
            width, height = struct.unpack_from("<HH", content, 6)
            still = width & 0x3FFF, height & 0x3FFF
        elif name == b"VP8L" and length >= 5 and content[:1] == b"\x2f":
            bits = int.from_bytes(content[1:5], "little")
            still = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        position += 8 + length + (length & 1)
    size = canvas or still
    if size is None or not (still or frames):
        raise damaged(kind, "it has no picture in it")
    return Header(kind, *size, frames=max(1, frames))


def _uint24(content: bytes, position: int) -> int:
    return int.from_bytes(content[position : position + 3], "little")
