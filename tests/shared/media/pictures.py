"""Picture files made byte by byte, good and hostile ones."""

import io
import struct
import zlib
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageCms

PNG = b"\x89PNG\r\n\x1a\n"


def chunk(kind: bytes, content: bytes) -> bytes:
    """Return a PNG chunk."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def ihdr(width: int, height: int, depth: int = 8, color: int = 2) -> bytes:
    """Return a PNG header chunk; color 2 is RGB."""
    return chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0))


def png(width: int, height: int, body: bytes, *extra: bytes, depth: int = 8, color: int = 2) -> bytes:
    """Return a PNG file with this compressed body, whatever it claims to be."""
    return b"".join([PNG, ihdr(width, height, depth, color), *extra, chunk(b"IDAT", body), chunk(b"IEND", b"")])


def webp(*chunks: tuple[bytes, bytes]) -> bytes:
    """Return a WebP file of these chunks."""
    body = b"".join(
        kind + struct.pack("<I", len(content)) + content + b"\x00" * (len(content) & 1) for kind, content in chunks
    )
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def vp8x(width: int, height: int, flags: int = 0) -> tuple[bytes, bytes]:
    """Return the extended header chunk of a WebP file."""
    return b"VP8X", struct.pack("<I", flags) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")


def segment(marker: int, content: bytes) -> bytes:
    """Return a JPEG segment."""
    return b"\xff" + bytes([marker]) + struct.pack(">H", len(content) + 2) + content


def scene(width: int = 48, height: int = 32) -> npt.NDArray[np.uint8]:
    """Return pixels that differ in every direction, so that no turn or mirror image equals another."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([x * 255 // width, y * 255 // height, (x + 2 * y) % 256], axis=-1).astype(np.uint8)


def save(image: Image.Image, kind: str, **options: Any) -> bytes:
    """Return the picture as a file."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def frames(colors: Iterable[str], kind: str) -> bytes:
    """Return an animation of plain frames."""
    first, *rest = [Image.new("RGB", (16, 16), color) for color in colors]
    return save(first, kind, save_all=True, append_images=rest, duration=50, lossless=True)


def with_orientation(orientation: int) -> bytes:
    """Return the EXIF block that says how the picture must be turned."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif.tobytes()


def swapped_profile() -> bytes:
    """Return a color profile that is sRGB with red and green exchanged, so that ignoring it shows."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    (count,) = struct.unpack_from(">I", profile, 128)
    entries = {bytes(profile[132 + 12 * i : 136 + 12 * i]): 132 + 12 * i for i in range(count)}
    red, green = entries[b"rXYZ"], entries[b"gXYZ"]
    profile[red : red + 4], profile[green : green + 4] = b"gXYZ", b"rXYZ"
    return bytes(profile)
