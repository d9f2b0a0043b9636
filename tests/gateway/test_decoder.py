"""Pictures are decoded in processes that may not take much, and whose end is nobody's concern."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.decoder import Decoder
from gateway.decoder_process import Bounds
from shared.errors import InvalidImage, InvalidRequest
from shared.media import decode_image
from tests.gateway.hostile.pictures import large
from tests.gateway.pictures import base64_of, file_of, pixels_of
from tests.processes import children_of, is_running, until

MIB = 1_048_576


def _processes() -> set[int]:
    return {
        pid
        for pid in children_of(os.getpid())
        if is_running(pid) and b"gateway.decoder_process" in Path(f"/proc/{pid}/cmdline").read_bytes()
    }


@pytest.fixture(scope="module")
def decoder() -> Iterator[Decoder]:
    """Yield a decoder with its usual bounds."""
    decoder = Decoder()
    yield decoder
    decoder.close()


def test_picture_becomes_plain_pixels(decoder: Decoder) -> None:
    pixels = pixels_of()
    for picture in (file_of(pixels, "WEBP"), base64_of(file_of(pixels))):
        decoded = decoder.plain(picture)
        assert (decoded.width, decoded.height) == (24, 16)
        assert (decode_image(decoded.data) == pixels).all()


def test_refusals_come_back_whole(decoder: Decoder) -> None:
    with pytest.raises(InvalidImage, match="not a PNG, JPEG or WebP file") as refused:
        decoder.plain(b"GIF89a")
    assert "Convert the picture" in refused.value.to_problem().next_step
    with pytest.raises(InvalidRequest) as unfit:
        decoder.check_mask(file_of(pixels_of()), 99, 16)
    assert [problem.field for problem in unfit.value.errors] == ["mask"]


@pytest.mark.parametrize("bounds", [Bounds(cpu_s=0.05), Bounds(memory_bytes=230 * MIB)], ids=["time", "memory"])
def test_picture_that_takes_too_much_is_refused_and_the_next_one_is_not(bounds: Bounds) -> None:
    decoder = Decoder(bounds)
    try:
        with pytest.raises(InvalidImage, match="more memory or time"):
            decoder.plain(large())
        assert decoder.plain(file_of(pixels_of())).width == 24
    finally:
        decoder.close()


def test_largest_picture_keeps_within_the_bounds(decoder: Decoder) -> None:
    assert decoder.plain(large()).width == 4_096


def test_process_that_was_killed_is_started_again(decoder: Decoder) -> None:
    decoder.plain(file_of(pixels_of()))
    (process,) = _processes()
    os.kill(process, signal.SIGKILL)
    until(lambda: not is_running(process), what="the end of the process")
    assert decoder.plain(file_of(pixels_of())).width == 24


def test_process_ends_with_its_gateway_and_does_not_know_its_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMGA_REDIS__URL", "redis://:pass-1138@127.0.0.1:1/0")
    before = _processes()
    decoder = Decoder()
    decoder.plain(file_of(pixels_of()))
    (process,) = _processes() - before
    assert b"pass-1138" not in Path(f"/proc/{process}/environ").read_bytes()
    decoder.close()
    assert not is_running(process)
