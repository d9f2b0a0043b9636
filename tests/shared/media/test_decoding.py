import logging
import struct
import tracemalloc
import zlib

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from shared.errors import InvalidImage
from shared.media import ImageLimits, decode_image, decode_opacity
from tests.shared.media.pictures import (
    PNG,
    chunk,
    frames,
    ihdr,
    png,
    save,
    scene,
    segment,
    swapped_profile,
    vp8x,
    webp,
    with_orientation,
)

SCENE = scene()
PICTURE = Image.fromarray(SCENE)
GOOD_PNG = save(PICTURE, "PNG")
GOOD_JPEG = save(PICTURE, "JPEG", quality=95, subsampling="4:4:4")
GOOD_WEBP = save(PICTURE, "WEBP", lossless=True)


def distance(pixels: npt.NDArray[np.uint8], expected: npt.NDArray[np.uint8] = SCENE) -> int:
    assert pixels.shape == expected.shape
    return int(np.abs(pixels.astype(int) - expected.astype(int)).max())


@pytest.mark.parametrize("data", [GOOD_PNG, GOOD_WEBP], ids=["png", "webp"])
def test_lossless_pictures_decode_exactly(data: bytes) -> None:
    pixels = decode_image(data)
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous
    assert pixels.flags.writeable
    assert np.array_equal(pixels, SCENE)


def test_jpeg_decodes_closely() -> None:
    assert distance(decode_image(GOOD_JPEG)) < 30


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1)])
def test_thin_pictures_are_pictures(kind: str, size: tuple[int, int]) -> None:
    assert decode_image(save(Image.new("RGB", size), kind)).shape == (size[1], size[0], 3)


HUGE_BODY = zlib.compress(b"\x00" * 10_000_000, 9)  # 10 MB of pixels in 10 kB
NOT_PICTURES: dict[str, bytes] = {
    "empty": b"",
    "one byte": b"\x89",
    "text named .png": b"This is not a picture.\n" * 100,
    "zeros": bytes(1_000),
    "html": b"<html><script>alert(1)</script></html>",
    "svg": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
    "pdf": b"%PDF-1.7\n1 0 obj\n",
    "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(%pipe%id) (r) file\n",
    "zip": b"PK\x03\x04" + bytes(100),
    "gif": save(PICTURE, "GIF"),
    "bmp": save(PICTURE, "BMP"),
    "tiff": save(PICTURE, "TIFF"),
    "ico": save(Image.new("RGB", (16, 16)), "ICO"),
    "ppm": save(PICTURE, "PPM"),
    "avif magic": b"\x00\x00\x00\x20ftypavif" + bytes(100),
    "riff that is sound": b"RIFF" + struct.pack("<I", 36) + b"WAVEfmt " + bytes(32),
    "png behind a byte": b"\x00" + GOOD_PNG,
}
DAMAGED: dict[str, bytes] = {
    "png signature alone": PNG,
    "png header alone": PNG + ihdr(8, 8),
    "png cut in its header": GOOD_PNG[:20],
    "png cut in its pixels": GOOD_PNG[: len(GOOD_PNG) // 2],
    "png without its end": GOOD_PNG[:-12],
    "png without pixels": PNG + ihdr(8, 8) + chunk(b"IEND", b""),
    "png with too few pixels": png(64, 64, zlib.compress(b"\x00" * 100)),
    "png with pixels that do not inflate": png(8, 8, b"\xff" * 100),
    "png with an impossible depth": png(8, 8, HUGE_BODY, depth=7),
    "png with an impossible color": png(8, 8, HUGE_BODY, color=5),
    "png with a palette color and no palette": png(8, 8, zlib.compress(b"\x00" * 72), color=3),
    "png with a second header that is a bomb": PNG + ihdr(8, 8) + png(9_000, 9_000, HUGE_BODY)[8:],
    "png with a wrong checksum": GOOD_PNG[:29] + b"\x00\x00\x00\x00" + GOOD_PNG[33:],
    "png whose chunk claims 4 GB": PNG + ihdr(8, 8) + b"\xff\xff\xff\xffIDAT" + bytes(100),
    "png whose first chunk is text": PNG + chunk(b"tEXt", b"a\x00b") + ihdr(8, 8) + chunk(b"IEND", b""),
    "jpeg start alone": b"\xff\xd8\xff",
    "jpeg start and end": b"\xff\xd8\xff\xd9",
    "jpeg cut in its header": GOOD_JPEG[:100],
    "jpeg cut in its pixels": GOOD_JPEG[: len(GOOD_JPEG) // 2],
    "jpeg without its end": GOOD_JPEG[:-2],
    "jpeg with a frame and no scan": b"\xff\xd8" + segment(0xC0, b"\x08\x00\x08\x00\x08\x01\x01\x11\x00") + b"\xff\xd9",
    "jpeg with two frames": b"\xff\xd8" + segment(0xC0, b"\x08\x00\x08\x00\x08\x01\x01\x11\x00") * 2 + b"\xff\xd9",
    "jpeg with a segment of length 0": b"\xff\xd8\xff\xe0\x00\x00" + GOOD_JPEG[2:],
    "jpeg with a segment past its end": b"\xff\xd8\xff\xe0\xff\xff\x00\x00\xff\xd9",
    "jpeg of markers only": b"\xff\xd8" + b"\xff\xd8" * 1_000,
    "jpeg without tables": b"\xff\xd8"
    + segment(0xC0, b"\x08\x00\x08\x00\x08\x01\x01\x11\x00")
    + segment(0xDA, b"\x01\x01\x00\x00\x3f\x00")
    + b"\x00" * 20
    + b"\xff\xd9",
    "webp without chunks": webp(),
    "webp cut in its pixels": GOOD_WEBP[: len(GOOD_WEBP) // 2],
    "webp that says it is shorter": GOOD_WEBP[:4] + struct.pack("<I", 20) + GOOD_WEBP[8:],
    "webp header alone": webp(vp8x(8, 8)),
    "webp whose pixels are noise": webp((b"VP8L", b"\x2f" + b"\x07\xc0\x01\x00" + b"\xff" * 50)),
    "webp whose canvas contradicts its pixels": webp(vp8x(64, 64), (b"VP8L", GOOD_WEBP[20:])),
    "webp animation without frames": webp(vp8x(8, 8, flags=2), (b"ANIM", bytes(6))),
    "webp with a broken frame": webp(vp8x(8, 8, flags=2), (b"ANIM", bytes(6)), (b"ANMF", bytes(16))),
    "webp whose chunk claims 4 GB": b"RIFF" + struct.pack("<I", 24) + b"WEBPVP8L" + b"\xff" * 4 + bytes(12),
}
TOO_LARGE: dict[str, bytes] = {
    "png of 2 billion pixels a side": png(2**31 - 1, 2**31 - 1, HUGE_BODY),
    "png of 4 billion pixels a side": png(2**32 - 1, 2**32 - 1, HUGE_BODY),
    "png bomb": png(100_000, 100_000, HUGE_BODY),
    "png strip": png(8_193, 1, zlib.compress(b"\x00" * 24_580)),
    "png with too many pixels on short sides": png(8_000, 8_000, HUGE_BODY),
    "png 0 wide": png(0, 8, HUGE_BODY),
    "png 0 high": png(8, 0, HUGE_BODY),
    "jpeg of 65,535 pixels a side": GOOD_JPEG.replace(
        struct.pack(">BHH", 8, 32, 48), struct.pack(">BHH", 8, 65_535, 65_535)
    ),
    "jpeg 0 high": GOOD_JPEG.replace(struct.pack(">BHH", 8, 32, 48), struct.pack(">BHH", 8, 0, 48)),
    "webp of 16,384 pixels a side": webp((b"VP8L", b"\x2f" + b"\xff\xff\xff\x0f" + bytes(50))),
    "webp canvas of 16 million pixels a side": webp(vp8x(2**24, 2**24), (b"VP8L", b"\x2f" + bytes(50))),
    "png that claims 4 billion frames": png(
        8, 8, zlib.compress(b"\x00" * 200), chunk(b"acTL", struct.pack(">II", 2**32 - 1, 0))
    ),
    "jpeg of 5,000 scans": GOOD_JPEG[:-2] + segment(0xDA, b"\x01\x01\x00\x00\x3f\x00") * 5_000 + b"\xff\xd9",
}
HOSTILE = NOT_PICTURES | DAMAGED | TOO_LARGE


@pytest.mark.filterwarnings("ignore:Invalid APNG:UserWarning")  # Pillow says it of a file that is refused anyway
@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_data_are_refused_in_our_words_with_what_to_do(data: bytes) -> None:
    with pytest.raises(InvalidImage) as caught:
        decode_image(data)
    problem = caught.value.to_problem()
    assert problem.code == "invalid_image"
    assert problem.status == 422
    text = problem.detail + problem.next_step
    assert problem.detail.endswith(".")
    assert problem.next_step.endswith(".")
    for foreign in ("PIL", "Pillow", " at 0x", "<", "cannot identify", "truncated", "broken data stream", "Error"):
        assert foreign not in text


@pytest.mark.parametrize("data", NOT_PICTURES.values(), ids=NOT_PICTURES.keys())
def test_other_files_are_told_what_is_taken(data: bytes) -> None:
    with pytest.raises(InvalidImage, match=r"not a PNG, JPEG or WebP file|is empty"):
        decode_image(data)


@pytest.mark.parametrize("data", TOO_LARGE.values(), ids=TOO_LARGE.keys())
def test_what_is_too_large_is_refused_before_it_is_decoded(data: bytes) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(InvalidImage, match=r"at most|0 pixels"):
            decode_image(data)
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("data", DAMAGED.values(), ids=DAMAGED.keys())
def test_damaged_files_are_called_damaged(data: bytes) -> None:
    with pytest.raises(InvalidImage, match="file is damaged: "):
        decode_image(data)


def test_a_second_header_does_not_get_past_the_limits() -> None:
    with pytest.raises(InvalidImage, match="contradict each other"):
        decode_image(DAMAGED["png with a second header that is a bomb"])


def test_more_pixels_than_the_header_promised_are_left_out() -> None:
    assert decode_image(png(8, 8, HUGE_BODY)).shape == (8, 8, 3)


@pytest.mark.parametrize(
    ("limits", "name"),
    [
        (ImageLimits(max_bytes=len(GOOD_PNG) - 1), "bytes"),
        (ImageLimits(max_pixels=48 * 32 - 1), "in all"),
        (ImageLimits(max_side_px=47), "on a side"),
    ],
)
def test_limits_are_exact(limits: ImageLimits, name: str) -> None:
    with pytest.raises(InvalidImage, match=name):
        decode_image(GOOD_PNG, limits)
    decode_image(GOOD_PNG, ImageLimits(max_bytes=len(GOOD_PNG), max_pixels=48 * 32, max_side_px=48, max_frames=1))


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_of_an_animation_the_first_frame_is_taken(kind: str) -> None:
    data = frames(["#ff0000", "#00ff00", "#0000ff"], kind)
    assert np.array_equal(decode_image(data), np.full((16, 16, 3), (255, 0, 0), np.uint8))
    with pytest.raises(InvalidImage, match="3 frames; at most 2"):
        decode_image(data, ImageLimits(max_frames=2))


def test_a_progressive_jpeg_is_taken_and_its_scans_are_counted() -> None:
    data = save(PICTURE, "JPEG", quality=95, subsampling="4:4:4", progressive=True)
    assert distance(decode_image(data)) < 30
    with pytest.raises(InvalidImage, match="scans; at most 2"):
        decode_image(data, ImageLimits(max_scans=2))


def test_a_thumbnail_within_a_jpeg_is_not_the_picture() -> None:
    thumbnail = segment(0xE1, b"Exif\x00\x00" + save(Image.new("RGB", (8, 8)), "JPEG"))
    assert decode_image(GOOD_JPEG[:2] + thumbnail + GOOD_JPEG[2:]).shape == (32, 48, 3)


def test_a_phones_picture_with_a_second_one_behind_it_is_taken() -> None:
    data = save(PICTURE, "MPO", save_all=True, append_images=[Image.new("RGB", (48, 32))], quality=95)
    assert distance(decode_image(data)) < 60


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize(
    ("orientation", "stored"),
    [
        (1, SCENE),
        (2, SCENE[:, ::-1]),
        (3, SCENE[::-1, ::-1]),
        (4, SCENE[::-1]),
        (5, SCENE.swapaxes(0, 1)),
        (6, np.rot90(SCENE)),
        (7, SCENE[::-1, ::-1].swapaxes(0, 1)),
        (8, np.rot90(SCENE, -1)),
        (0, SCENE),
        (9, SCENE),
        (65_535, SCENE),
    ],
)
def test_pictures_are_turned_upright(kind: str, orientation: int, stored: npt.NDArray[np.uint8]) -> None:
    options = {"quality": 95, "subsampling": "4:4:4"} if kind == "JPEG" else {"lossless": True}
    image = Image.fromarray(np.ascontiguousarray(stored))
    data = save(image, kind, exif=with_orientation(orientation), **options)
    assert distance(decode_image(data)) < 30


@pytest.mark.parametrize(("orientation", "stored"), [(1, SCENE), (3, SCENE[::-1, ::-1]), (6, np.rot90(SCENE))])
@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_opacity_is_that_of_the_upright_picture(kind: str, orientation: int, stored: npt.NDArray[np.uint8]) -> None:
    image = Image.fromarray(np.ascontiguousarray(np.dstack([stored, stored[..., 0]])))
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    opacity = decode_opacity(save(image, kind, exif=with_orientation(orientation), **options))
    assert opacity is not None
    assert np.array_equal(opacity, SCENE[..., 0])


def test_opaque_kinds_of_pictures_have_no_opacity() -> None:
    assert decode_opacity(GOOD_PNG) is None
    assert decode_opacity(GOOD_JPEG) is None
    with pytest.raises(InvalidImage):
        decode_opacity(b"text")


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data:UserWarning")  # Pillow's warning is for the log, not for a client
@pytest.mark.parametrize(
    "exif", [b"Exif\x00\x00", b"Exif\x00\x00II*\x00\xff\xff\xff\xff", b"Exif\x00\x00" + b"\xff" * 999, b"x"]
)
def test_hostile_metadata_do_not_spoil_a_good_picture(exif: bytes) -> None:
    assert distance(decode_image(save(PICTURE, "JPEG", quality=95, subsampling="4:4:4", exif=exif))) < 30
    assert np.array_equal(decode_image(png_with(chunk(b"eXIf", exif[6:] or b"x"))), SCENE)


def png_with(extra: bytes) -> bytes:
    return GOOD_PNG[:33] + extra + GOOD_PNG[33:]


def test_text_that_inflates_without_end_does_not_spoil_memory() -> None:
    bomb = chunk(b"zTXt", b"a\x00\x00" + zlib.compress(b"\x00" * 50_000_000, 9))
    tracemalloc.start()
    try:
        with pytest.raises(InvalidImage):
            decode_image(png_with(bomb))
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


def test_an_embedded_profile_is_applied() -> None:
    swapped = SCENE[..., [1, 0, 2]]
    data = save(PICTURE, "PNG", icc_profile=swapped_profile())
    assert distance(decode_image(data), swapped) <= 3


def test_a_profile_that_is_srgb_changes_nothing() -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert np.array_equal(decode_image(save(PICTURE, "PNG", icc_profile=profile)), SCENE)


@pytest.mark.parametrize("profile", [b"", b"x", b"\xff" * 5_000, swapped_profile()[:300], bytes(5 * 1024 * 1024)])
def test_a_broken_profile_is_ignored(profile: bytes) -> None:
    assert np.array_equal(decode_image(save(PICTURE, "WEBP", lossless=True, icc_profile=profile)), SCENE)


def test_a_profile_for_other_pixels_is_ignored() -> None:
    gray = PICTURE.convert("L")
    data = save(gray, "PNG", icc_profile=swapped_profile())
    assert np.array_equal(decode_image(data), np.asarray(gray.convert("RGB")))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_transparency_is_laid_over_white(mode: str) -> None:
    rgba = np.zeros((2, 3, 4), np.uint8)
    rgba[:, 1, 3] = 255
    rgba[:, 2, 3] = 128
    image = Image.fromarray(rgba).convert(mode if mode != "PA" else "RGBA")
    if mode == "PA":
        image = image.quantize(4)
    pixels = decode_image(save(image, "PNG"))
    assert pixels[0, :, 0].tolist() == [255, 0, pytest.approx(127, abs=1)]
    assert (pixels[..., 0] == pixels[..., 2]).all()


def test_a_transparent_color_is_laid_over_white() -> None:
    image = Image.new("RGB", (2, 2), (10, 20, 30))
    assert (decode_image(save(image, "PNG", transparency=(10, 20, 30))) == 255).all()


def test_a_palette_becomes_its_colors() -> None:
    image = Image.new("RGB", (16, 16), "#ff8000").quantize(2)
    assert np.array_equal(decode_image(save(image, "PNG")), np.full((16, 16, 3), (255, 128, 0), np.uint8))


@pytest.mark.parametrize(("value", "expected"), [(0, 0), (1, 255)])
def test_one_bit_becomes_black_and_white(value: int, expected: int) -> None:
    assert (decode_image(save(Image.new("1", (9, 9), value), "PNG")) == expected).all()


@pytest.mark.parametrize(("value", "expected"), [(0, 0), (257, 1), (32_896, 128), (65_535, 255)])
def test_sixteen_bits_of_gray_become_eight(value: int, expected: int) -> None:
    image = Image.fromarray(np.full((4, 4), value, np.uint16))
    assert (decode_image(save(image, "PNG")) == expected).all()


def test_sixteen_bits_of_color_become_eight() -> None:
    row = b"\x00" + struct.pack(">HHH", 65_535, 32_896, 0) * 4
    pixels = decode_image(png(4, 4, zlib.compress(row * 4), depth=16))
    assert (pixels == (255, 128, 0)).all()


@pytest.mark.parametrize(("ink", "expected"), [((0, 0, 0, 0), 255), ((0, 0, 0, 255), 0)])
def test_printers_colors_become_rgb(ink: tuple[int, int, int, int], expected: int) -> None:
    data = save(Image.new("CMYK", (16, 16), ink), "JPEG", quality=95)
    assert np.abs(decode_image(data).astype(int) - expected).max() <= 3


def test_what_the_decoder_said_is_in_the_log_only(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "llmga.media")
    with pytest.raises(InvalidImage):
        decode_image(DAMAGED["png with too few pixels"])
    assert "could not be decoded" in caplog.text


@pytest.mark.filterwarnings("ignore::UserWarning:PIL.*")  # broken metadata is announced that way
@settings(max_examples=300, deadline=None)
@given(st.sampled_from([GOOD_PNG, GOOD_JPEG, GOOD_WEBP]), st.data())
def test_any_damage_ends_in_a_picture_or_our_error(good: bytes, data: st.DataObject) -> None:
    broken = bytearray(good)
    for _ in range(data.draw(st.integers(1, 4))):
        broken[data.draw(st.integers(0, len(broken) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(broken)))
    for candidate in (bytes(broken), bytes(broken[:cut])):
        try:
            pixels = decode_image(candidate)
        except InvalidImage:
            continue
        assert pixels.dtype == np.uint8
        assert pixels.shape[2] == 3
