"""Pictures that nobody sends by mistake, and some that people do send: each with what must become of it.

All are made here, small where they can be; what is large in them is what they say of themselves.
"""

import io
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from PIL import Image, ImageCms

from shared.media.headers import PNG_SIGNATURE
from tests.gateway.pictures import file_of, pixels_of

SIDE = 4_096


@dataclass(frozen=True, slots=True)
class Sent:
    """A file, the media type that it is sent with, and whether it is a picture that is taken."""

    name: str
    data: bytes
    is_taken: bool = False
    media_type: str = "image/png"


@cache
def large() -> bytes:
    """Return the file of one of the largest pictures that are taken."""
    row = np.arange(SIDE * 3, dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(np.broadcast_to(row, (SIDE, SIDE * 3)).reshape(SIDE, SIDE, 3).copy()).save(
        file, "PNG", compress_level=1
    )
    return file.getvalue()


def pictures() -> Iterator[Sent]:
    """Yield them all."""
    yield from _unusual()
    yield from _claims()
    yield from _bombs()
    yield from _cut()
    yield from _broken()
    yield from _others()
    yield from _polyglots()
    yield from _metadata()


def _saved(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def _unusual() -> Iterator[Sent]:
    """Yield what programs write and people send."""
    rgb = Image.fromarray(pixels_of())
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"):
        image = Image.fromarray(np.full((8, 8), 40_000, np.uint16)) if mode == "I;16" else rgb.convert(mode)
        yield Sent(f"png of mode {mode}", _saved(image), is_taken=True)
    for mode in ("L", "CMYK", "YCbCr"):
        yield Sent(f"jpeg of mode {mode}", _saved(rgb.convert(mode), "JPEG"), is_taken=True, media_type="image/jpeg")
    yield Sent("palette with transparency", _saved(rgb.quantize(16), transparency=0), is_taken=True)
    yield Sent("interlaced", _interlaced(), is_taken=True)
    yield Sent("progressive", _saved(rgb, "JPEG", progressive=True), is_taken=True)
    for kind in ("PNG", "WEBP"):
        animated = _saved(rgb, kind, save_all=True, append_images=[rgb.rotate(90 * turn) for turn in range(1, 4)])
        yield Sent(f"animated {kind}", animated, is_taken=True)
    for kind in ("PNG", "JPEG", "WEBP"):
        for media_type in ("image/png", "image/jpeg", "image/webp", "application/octet-stream"):
            yield Sent(f"{kind} sent as {media_type}", file_of(pixels_of(), kind), is_taken=True, media_type=media_type)
    yield Sent("one pixel", _saved(Image.new("RGB", (1, 1))), is_taken=True)
    yield Sent("one row of the greatest length", _saved(Image.new("L", (8_192, 1))), is_taken=True)


def _interlaced() -> bytes:
    """Return a PNG of 1x1 that says it is interlaced, which for one pixel changes nothing else."""
    header = struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 1)
    return _png(_chunk(b"IHDR", header), _chunk(b"IDAT", zlib.compress(b"\0abc")), _chunk(b"IEND"))


def _claims() -> Iterator[Sent]:
    """Yield files of a few bytes that say they are large, or nothing at all."""
    sides = [
        (0, 0),
        (0, 8),
        (8, 0),
        (8_193, 1),
        (4_097, 4_096),
        (65_535, 65_535),
        (2**31 - 1, 1),
        (2**32 - 1, 2**32 - 1),
    ]
    for width, height in sides:
        header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
        body = _chunk(b"IDAT", zlib.compress(b"\0" * 64))
        yield Sent(f"png of {width}x{height}", _png(_chunk(b"IHDR", header), body, _chunk(b"IEND")))
    for depth, color in ((0, 2), (3, 0), (16, 3), (8, 1), (8, 7), (255, 255)):
        header = struct.pack(">IIBBBBB", 8, 8, depth, color, 0, 0, 0)
        body = _chunk(b"IDAT", zlib.compress(b"\0" * 512))
        yield Sent(f"png of depth {depth} and color {color}", _png(_chunk(b"IHDR", header), body, _chunk(b"IEND")))
    jpeg = file_of(pixels_of(), "JPEG")
    frame = jpeg.index(b"\xff\xc0")
    for height, width in ((0, 8), (65_535, 65_535), (8, 0)):
        size = struct.pack(">HH", height, width)
        yield Sent(f"jpeg of {width}x{height}", jpeg[: frame + 5] + size + jpeg[frame + 9 :], media_type="image/jpeg")
    webp = _saved(Image.fromarray(pixels_of()), "WEBP", lossless=True, exif=Image.Exif())
    canvas = webp.find(b"VP8X")
    if canvas > 0:
        grown = webp[: canvas + 12] + b"\xff" * 6 + webp[canvas + 18 :]
        yield Sent("webp of 16,777,216 on a side", grown, media_type="image/webp")
    many = b"acTL", struct.pack(">II", 100_000, 0)
    yield Sent("animation of 100,000 frames", _with_chunk(file_of(pixels_of()), *many))


def _bombs() -> Iterator[Sent]:
    """Yield what is small as a file and large, or slow, when it is decoded."""
    yield Sent("flat picture of the largest size", _saved(Image.new("1", (SIDE, SIDE))), is_taken=True)
    yield Sent("flat picture above it", _saved(Image.new("1", (8_192, 8_192))))
    header = struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 0)
    pixels = zlib.compress(b"\0" * (64 * 1_048_576), 9)
    yield Sent(
        "more pixels than it says", _png(_chunk(b"IHDR", header), _chunk(b"IDAT", pixels), _chunk(b"IEND")), True
    )
    zeros = zlib.compress(b"a" * (64 * 1_048_576), 9)
    yield Sent("text of 64 MiB in a chunk", _with_chunk(file_of(pixels_of()), b"zTXt", b"k\0\0" + zeros))
    yield Sent("profile of 64 MiB in a chunk", _with_chunk(file_of(pixels_of()), b"iCCP", b"k\0\0" + zeros))
    progressive = _saved(Image.new("RGB", (256, 256), "red"), "JPEG", progressive=True)
    scan = progressive[progressive.rindex(b"\xff\xda") : -2]
    yield Sent("sixty more scans", progressive[:-2] + scan * 100 + b"\xff\xd9", media_type="image/jpeg")
    chunks = _chunk(b"tEXt", b"k\0v") * 20_000
    yield Sent("20,000 chunks", _with(file_of(pixels_of()), chunks), is_taken=True)


def _cut() -> Iterator[Sent]:
    for kind in ("PNG", "JPEG", "WEBP"):
        whole = file_of(pixels_of(), kind)
        for share in (0, 1, 2, 3, 5, 8, 9):
            yield Sent(f"{kind} of which {share}/10 are there", whole[: len(whole) * share // 10])


def _broken() -> Iterator[Sent]:
    """Yield files of which some bytes are others; whether that shows is for the decoder to say."""
    for kind in ("PNG", "WEBP"):
        whole = file_of(pixels_of(), kind)
        for place in range(12, 21):
            changed = bytearray(whole)
            changed[place] ^= 0xFF
            yield Sent(f"{kind} with another byte {place}", bytes(changed))
    png = file_of(pixels_of())
    yield Sent("no palette", png[:25] + b"\x03" + png[26:])
    yield Sent("no pixels", _png(_chunk(b"IHDR", png[16:29]), _chunk(b"IEND")))
    yield Sent("pixels that are no stream", _png(_chunk(b"IHDR", png[16:29]), _chunk(b"IDAT", b"no"), _chunk(b"IEND")))
    yield Sent("chunk of negative length", png[:33] + b"\xff\xff\xff\xffIDAT" + png[41:])
    yield Sent("two headers", png[:33] + png[8:33] + png[33:], is_taken=True)


def _others() -> Iterator[Sent]:
    rgb = Image.fromarray(pixels_of())
    for kind in ("GIF", "BMP", "TIFF", "PPM", "ICO", "TGA", "PCX", "JPEG2000", "PDF"):
        yield Sent(f"a {kind} file", _saved(rgb, kind))
    texts = {
        "nothing": b"",
        "a zero": b"\0",
        "zeros": b"\0" * 100_000,
        "svg": b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>',
        "xml with an entity": b'<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><a>&x;</a>',
        "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\nshowpage",
        "a program": b"\x7fELF\x02\x01\x01" + b"\0" * 64,
        "a zip file": b"PK\x03\x04" + b"\0" * 64,
        "words": "a picture of a house".encode("utf-16"),
        "an address": b"http://169.254.169.254/latest/meta-data/",
    }
    for name, data in texts.items():
        yield Sent(name, data)


def _polyglots() -> Iterator[Sent]:
    """Yield good pictures that are something else as well; what is kept of them are the pixels."""
    tail = b"<script>alert(1)</script>PK\x05\x06" + b"\0" * 18
    for kind in ("PNG", "JPEG", "WEBP"):
        yield Sent(f"{kind} and a page behind it", file_of(pixels_of(), kind) + tail, is_taken=True)
    jpeg = file_of(pixels_of(), "JPEG")
    comment = b"\xff\xfe" + struct.pack(">H", 2 + len(tail)) + tail
    yield Sent("jpeg with a page in its comment", jpeg[:2] + comment + jpeg[2:], is_taken=True)
    yield Sent("png with a page in its text", _with_chunk(file_of(pixels_of()), b"tEXt", b"k\0" + tail), is_taken=True)
    yield Sent("gif that goes on as png", b"GIF89a" + file_of(pixels_of()))


def _metadata() -> Iterator[Sent]:
    rgb = Image.fromarray(pixels_of())
    for orientation in (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 65_535):
        exif = Image.Exif()
        exif[0x0112] = orientation
        yield Sent(f"turned by {orientation}", _saved(rgb, "JPEG", exif=exif), is_taken=True, media_type="image/jpeg")
    liars = {
        "no exif": b"Exif\0\0nothing",
        "exif that leads into itself": b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\x12\x01" * 90,
    }
    for name, exif_bytes in liars.items():
        yield Sent(name, _saved(rgb, "JPEG", exif=exif_bytes), is_taken=True, media_type="image/jpeg")
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    profiles = {"good": profile, "cut": profile[:100], "none": b"profile", "of another size": b"\xff" * 4 + profile[4:]}
    profiles["for lab colors"] = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    for name, content in profiles.items():
        yield Sent(f"profile: {name}", _saved(rgb, icc_profile=content), is_taken=True)


def _png(*chunks: bytes) -> bytes:
    return PNG_SIGNATURE + b"".join(chunks)


def _chunk(kind: bytes, content: bytes = b"") -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _with_chunk(png: bytes, kind: bytes, content: bytes) -> bytes:
    return _with(png, _chunk(kind, content))


def _with(png: bytes, chunks: bytes) -> bytes:
    """Return a PNG file with more chunks behind its header."""
    return png[:33] + chunks + png[33:]
