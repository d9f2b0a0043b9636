import io
import zlib
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from shared.contracts import OutputFormat
from shared.errors import InvalidImage
from shared.media import SourceType, decode_image, encode_image, read_header, read_text, xmp_packet
from tests.shared.media.pictures import PNG, chunk, png, save, scene

TEXT = {"prompt": "a snowman at night", "instruction": "雪人 ☃ 😀\nsecond line", "seed": "7", "empty": ""}


@pytest.mark.parametrize("output_format", OutputFormat)
def test_text_comes_back_as_it_went_in(output_format: OutputFormat) -> None:
    data = encode_image(scene(), output_format, TEXT)
    header = read_header(data)
    assert (header.format, header.width, header.height, header.frames) == (output_format, 48, 32, 1)
    assert read_text(data) == TEXT


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (7, 1), (3, 5), (257, 129)])
@pytest.mark.parametrize("noise", [True, False])
def test_png_is_exact(size: tuple[int, int], noise: bool) -> None:
    pixels = scene(*size)
    if noise:
        pixels = np.random.default_rng(0).integers(0, 256, pixels.shape, np.uint8)
    data = encode_image(pixels, OutputFormat.PNG, {})
    assert np.array_equal(decode_image(data), pixels)


def test_png_is_read_by_others_with_its_text() -> None:
    with Image.open(io.BytesIO(encode_image(scene(), OutputFormat.PNG, TEXT))) as image:
        image.verify()
    with Image.open(io.BytesIO(encode_image(scene(), OutputFormat.PNG, TEXT))) as image:
        image.load()
        assert image.mode == "RGB"
        assert {key: image.info[key] for key in TEXT} == TEXT
        assert np.array_equal(np.asarray(image), scene())


def test_pixels_in_any_memory_order_give_the_same_file() -> None:
    pixels = scene()
    strided = np.asfortranarray(pixels)
    assert encode_image(strided, OutputFormat.PNG, {}) == encode_image(pixels, OutputFormat.PNG, {})
    turned = pixels[::-1]
    assert np.array_equal(decode_image(encode_image(turned, OutputFormat.PNG, {})), turned)


def test_the_same_pixels_give_the_same_bytes() -> None:
    for output_format in OutputFormat:
        assert encode_image(scene(), output_format, TEXT) == encode_image(scene(), output_format, TEXT)


@pytest.mark.parametrize("output_format", [OutputFormat.JPEG, OutputFormat.WEBP])
def test_lossy_formats_stay_close(output_format: OutputFormat) -> None:
    pixels = np.asarray(Image.fromarray(scene(12, 8)).resize((96, 64), Image.Resampling.BICUBIC))
    error = np.abs(decode_image(encode_image(pixels, output_format, {})).astype(int) - pixels)
    assert error.mean() < 4


@pytest.mark.parametrize("output_format", [OutputFormat.JPEG, OutputFormat.WEBP])
def test_quality_decides_how_much_is_lost(output_format: OutputFormat) -> None:
    pixels = np.asarray(Image.fromarray(scene(12, 8)).resize((96, 64), Image.Resampling.BICUBIC))
    files = [encode_image(pixels, output_format, {}, quality_percent=percent) for percent in (0, 50, 100)]
    assert sorted(files, key=len) == files
    errors = [np.abs(decode_image(data).astype(int) - pixels).mean() for data in files]
    assert errors[0] > errors[1] > errors[2]


def test_a_smooth_picture_is_compressed() -> None:
    pixels = np.zeros((256, 256, 3), np.uint8)
    assert len(encode_image(pixels, OutputFormat.PNG, {})) < 2_000


@pytest.mark.parametrize("output_format", OutputFormat)
@pytest.mark.parametrize("text", ["x" * 8_000, "雪" * 8_000])
def test_the_longest_instruction_fits_every_format(output_format: OutputFormat, text: str) -> None:
    assert read_text(encode_image(scene(), output_format, {"instruction": text})) == {"instruction": text}


def test_what_does_not_fit_a_jpeg_is_shortened_visibly_longest_first() -> None:
    texts = {"instruction": "😀" * 8_000, "negative_prompt": "雪" * 8_000, "seed": "7"}
    back = read_text(encode_image(scene(), OutputFormat.JPEG, texts))
    assert back["seed"] == "7"
    assert back["instruction"].endswith("…")
    assert texts["instruction"].startswith(back["instruction"][:-1])
    assert len(back["instruction"]) > 1_000
    assert read_text(encode_image(scene(), OutputFormat.WEBP, texts)) == texts
    assert read_text(encode_image(scene(), OutputFormat.PNG, texts)) == texts


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(OutputFormat),
    st.dictionaries(
        st.from_regex(r"[a-z][a-z0-9_-]{0,20}", fullmatch=True),
        st.text(st.characters(exclude_categories=["Cs"]), max_size=40),
        max_size=4,
    ),
)
def test_any_text_comes_back(output_format: OutputFormat, texts: dict[str, str]) -> None:
    assert read_text(encode_image(scene(), output_format, texts)) == texts


@pytest.mark.parametrize("key", ["", "a b", "ü", "a\x00b", "x" * 80, "a:b"])
@pytest.mark.parametrize("output_format", OutputFormat)
def test_keys_that_not_every_format_can_hold_are_refused(output_format: OutputFormat, key: str) -> None:
    with pytest.raises(ValueError, match="cannot name a text"):
        encode_image(scene(), output_format, {key: "x"})


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((4, 4, 3), np.float32),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros((1, 4, 4, 3), np.uint8),
    ],
    ids=lambda pixels: f"{pixels.dtype}{pixels.shape}",
)
def test_other_arrays_are_refused(pixels: Any) -> None:
    with pytest.raises(ValueError, match="pixels must be uint8"):
        encode_image(pixels, OutputFormat.PNG, {})


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_a_picture_of_somebody_else_has_no_text(kind: str) -> None:
    assert read_text(save(Image.fromarray(scene()), kind)) == {}


def comment(content: bytes) -> bytes:
    exif = Image.Exif()
    exif[0x8769] = {0x9286: content}
    return save(Image.fromarray(scene()), "JPEG", exif=exif)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"ASCII\x00\x00\x00holiday",
        b"UNICODE\x00\xff\xfe",
        b'ASCII\x00\x00\x00["a"]',
        b'ASCII\x00\x00\x00{"n": 1}',
        b"ASCII\x00\x00\x00" + b"[" * 50_000,
    ],
    ids=lambda content: repr(content)[:25],
)
def test_a_comment_of_somebody_else_is_no_text_of_ours(content: bytes) -> None:
    assert read_text(comment(content)) == {}


def test_compressed_text_of_somebody_else_is_left_out() -> None:
    packed = zlib.compress(b"x" * 1_000_000)
    extra = chunk(b"iTXt", b"a\x00\x01\x00\x00\x00" + packed) + chunk(b"zTXt", b"b\x00\x00" + packed)
    assert read_text(png(1, 1, zlib.compress(bytes(4)), extra)) == {}


@pytest.mark.parametrize("data", [b"", b"text", PNG, b"\xff\xd8\xff\xd9"])
def test_text_is_read_from_pictures_only(data: bytes) -> None:
    with pytest.raises(InvalidImage):
        read_text(data)


@pytest.mark.parametrize("source", SourceType)
@pytest.mark.parametrize("output_format", OutputFormat)
def test_others_read_where_a_picture_comes_from(output_format: OutputFormat, source: SourceType) -> None:
    data = encode_image(scene(), output_format, TEXT, xmp=xmp_packet(source, 'a "tool" <1 & 2>'))
    assert read_text(data) == TEXT
    with Image.open(io.BytesIO(data)) as image:
        packet = image.info["xmp"]
    [described] = ElementTree.fromstring(packet).iter("{http://www.w3.org/1999/02/22-rdf-syntax-ns#}Description")
    assert described.attrib["{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}DigitalSourceType"] == source
    assert described.attrib["{http://ns.adobe.com/xap/1.0/}CreatorTool"] == 'a "tool" <1 & 2>'
