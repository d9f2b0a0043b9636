from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from services.mllm.pictures import Pixels
from training.data import pictures
from training.data.formats import DataError
from training.data.pictures import TowerInput, load, shaped


def gradient(height: int, width: int) -> Pixels:
    rows, columns = np.mgrid[0:height, 0:width]
    return np.stack([rows * 255 // height, columns * 255 // width, np.full_like(rows, 90)], axis=-1).astype(np.uint8)


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1", "I;16", "CMYK"])
def test_every_kind_of_picture_becomes_rgb(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    gray = Image.new("L", (20, 12), 200)
    image = Image.fromarray(np.full((12, 20), 200 * 257, np.uint16)) if mode == "I;16" else gray.convert(mode)
    image.save(path)
    pixels = load(path)
    assert pixels.shape == (12, 20, 3)
    assert pixels.dtype == np.uint8
    assert abs(int(pixels.mean()) - 200) <= 3  # one bit a pixel has white and black ones in this share


def test_transparency_is_laid_over_white(tmp_path: Path) -> None:
    Image.new("RGBA", (8, 8), (255, 0, 0, 0)).save(tmp_path / "a.png")
    assert (load(tmp_path / "a.png") == 255).all()


def test_huge_picture_is_refused_by_name_before_it_is_decoded(tmp_path: Path) -> None:
    path = tmp_path / "huge.png"
    Image.new("1", (20_001, 8)).save(path)
    with pytest.raises(DataError, match=r"huge\.png: The picture is 20001x8 pixels.*on_error: skip"):
        load(path)


@pytest.mark.parametrize("size", [(8, 401), (401, 8)])
def test_strip_that_a_square_would_make_huge_is_refused_by_name(tmp_path: Path, size: tuple[int, int]) -> None:
    Image.new("RGB", size).save(tmp_path / "strip.png")
    with pytest.raises(DataError, match=r"strip\.png: The picture is \d+x\d+ pixels, one side .*on_error: skip"):
        load(tmp_path / "strip.png")
    Image.new("RGB", (400, 8)).save(tmp_path / "strip.png")
    assert load(tmp_path / "strip.png").shape == (8, 400, 3)


@pytest.mark.parametrize("content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n broken"])
def test_file_that_is_no_picture_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.png: "):
        load(tmp_path / "a.png")


def test_missing_picture_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.png: it cannot be read \(No such file"):
        load(tmp_path / "a.png")


def test_cut_off_picture_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(gradient(64, 64)).save(path)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DataError, match=r"a\.png: "):
        load(path)


def test_stage_1_stretches_to_a_square() -> None:
    pixels = shaped(gradient(100, 300), "stage1", path=Path("coco/a.png"))
    assert pixels.shape == (512, 512, 3)
    assert pixels[0, 0, 0] < 5
    assert pixels[-1, -1, 0] > 245
    assert pixels[-1, -1, 1] > 245  # the whole width is there


def test_laion_pictures_keep_their_aspect_ratio_and_lose_their_ends() -> None:
    pixels = shaped(gradient(256, 512), "stage1", path=Path("imgs/laion/a.png"))
    assert pixels.shape == (512, 512, 3)
    # 512 x 1024 after scaling, of which columns 256 to 768 are left: a quarter of 255 on each side is lost.
    assert abs(int(pixels[0, 0, 1]) - 64) <= 2
    assert abs(int(pixels[0, -1, 1]) - 191) <= 2
    upper_case = shaped(gradient(256, 512), "stage1", path=Path("imgs/LAION/a.png"))
    assert upper_case[0, 0, 1] < 5  # the rule asks for lower case


def test_projector_pretraining_leaves_shapes_to_clip() -> None:
    pixels = gradient(100, 300)
    assert shaped(pixels, "as_is") is pixels
    values = TowerInput(56, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)).values(pixels)
    assert values.shape == (3, 56, 56)
    # 56 x 168, of which the middle third is left.
    assert values[1, 0, 0].item() == pytest.approx(-1 / 3, abs=0.03)
    assert values[1, 0, -1].item() == pytest.approx(1 / 3, abs=0.03)


def test_serving_s_shape_is_a_square_of_the_longer_side() -> None:
    assert shaped(gradient(40, 90), "squared").shape == (90, 90, 3)


def test_tower_s_input_is_normalized_by_channel() -> None:
    tower = TowerInput(14)
    values = tower.values(np.full((14, 14, 3), 255, np.uint8))
    expected = [(1 - mean) / std for mean, std in zip(tower.mean, tower.std, strict=True)]
    assert values[:, 3, 5].tolist() == pytest.approx(expected)


def test_tower_s_input_is_read_from_both_spellings(tmp_path: Path) -> None:
    for crop in ("224", '{"height": 224, "width": 224}'):
        (tmp_path / "preprocessor_config.json").write_text(
            f'{{"crop_size": {crop}, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.2, 0.2, 0.2]}}'
        )
        assert TowerInput.of(tmp_path) == TowerInput(224, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))


def test_limits_are_above_those_of_uploads() -> None:
    assert pictures.LIMITS.max_pixels == 100_000_000
