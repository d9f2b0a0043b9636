"""Examples: cut, flipped, degraded and masked together, all from one seed."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from training.data.degradations import Pixels, Seams
from training.data.formats import DataError
from training.data.masks import DIFFRIR
from training.restoration.examples import Degraded, Folder, World, collate_for, cut, sharpen


class Untouched:
    """A degradation that only shrinks, so that places can be compared."""

    def __call__(self, pixels: Pixels, scale: int, generator: np.random.Generator) -> Pixels:
        return pixels[::scale, ::scale]


def degraded(source: Folder | World, scale: int = 1, *, picture_px: int = 64, crop_px: int = 32) -> Degraded:
    return Degraded(source, Untouched(), DIFFRIR.scaled(0.16), scale, picture_px, crop_px)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    (tmp_path / "deep" / "er").mkdir(parents=True)
    for name, size in (("a.png", (80, 90)), ("deep/er/b.JPG", (40, 200)), ("deep/c.webp", (64, 64))):
        Image.fromarray(generator.integers(0, 256, (*size, 3), dtype=np.uint8)).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no picture", encoding="utf-8")
    return tmp_path


def test_folder_holds_the_pictures_of_all_depths(folder: Path) -> None:
    source = Folder.of(folder)
    assert [path.name for path in source.paths] == ["a.png", "c.webp", "b.JPG"]
    assert source.picture(2).shape == (40, 200, 3)


def test_folder_without_pictures_and_damaged_pictures_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"{tmp_path}: there are no pictures"):
        Folder.of(tmp_path)
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    with pytest.raises(DataError, match=r"broken\.png"):
        Folder.of(tmp_path).picture(0)


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "CMYK"])
def test_every_kind_of_picture_is_learned_in_its_colors(tmp_path: Path, mode: str) -> None:
    gray = Image.new("L", (64, 64), 200).convert(mode)
    gray.save(tmp_path / "a.png", "JPEG" if mode == "CMYK" else "PNG")  # the content decides, not the name
    example = degraded(Folder.of(tmp_path)).example(0, seed=0)
    assert example.truth.shape == example.painted.shape == (32, 32, 3)
    assert abs(example.truth.astype(int) - 200).max() <= 1


def test_bad_picture_gives_its_place_to_the_next_by_choice(folder: Path) -> None:
    skipping = replace(degraded(Folder.of(folder)), on_error="skip")
    (folder / "a.png").write_bytes(b"no picture")
    assert np.array_equal(skipping.example(0, seed=3).truth, skipping.example(1, seed=3).truth)
    assert skipping.counts == {"skipped": 1}


def test_every_file_that_is_listed_is_of_a_format_that_is_read(tmp_path: Path) -> None:
    gray = Image.new("RGB", (64, 64), (200,) * 3)
    for suffix in (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tiff", ".gif"):
        gray.save(tmp_path / f"a{suffix}")
    source = Folder.of(tmp_path)
    assert len(source) == 4
    for position in range(4):
        assert abs(source.picture(position).astype(int) - 200).max() <= 1


def test_huge_and_missing_pictures_are_named(tmp_path: Path) -> None:
    for name in ("huge", "lost"):
        Image.new("1", (20_001, 8)).save(tmp_path / f"{name}.png")
    source = Folder.of(tmp_path)
    (tmp_path / "lost.png").unlink()
    with pytest.raises(DataError, match=r"huge\.png: The picture is 20001x8 pixels"):
        degraded(source).example(0, seed=0)
    with pytest.raises(DataError, match=r"lost\.png: it cannot be read"):
        degraded(source).example(1, seed=0)


@pytest.mark.parametrize("scale", [1, 2, 4])
def test_painting_truth_and_mask_are_of_the_same_place(folder: Path, scale: int) -> None:
    examples = degraded(Folder.of(folder), scale)
    for position in range(3):
        for seed in range(10):
            example = examples.example(position, seed)
            assert example.truth.shape == (32, 32, 3)
            assert example.mask.shape == (32, 32)
            assert np.array_equal(example.painted, example.truth[::scale, ::scale])
            assert example.target is example.truth


def test_example_depends_on_its_seed_alone(folder: Path) -> None:
    examples = degraded(Folder.of(folder))
    first, again, other = (examples.example(0, seed) for seed in (3, 3, 4))
    assert np.array_equal(first.truth, again.truth)
    assert np.array_equal(first.mask, again.mask)
    assert not np.array_equal(first.truth, other.truth)


def test_half_of_the_pictures_are_flipped(tmp_path: Path) -> None:
    ramp = np.repeat(np.arange(64, dtype=np.uint8)[None, :, None], 64, axis=0).repeat(3, axis=2)
    Image.fromarray(ramp).save(tmp_path / "ramp.png")
    examples = degraded(Folder.of(tmp_path))
    falls = sum(bool(truth[0, 0, 0] > truth[0, -1, 0]) for truth in (examples.example(0, s).truth for s in range(400)))
    assert 160 < falls < 240


def test_small_pictures_are_mirrored_to_size() -> None:
    pixels = np.arange(20, dtype=np.uint8).reshape(4, 5, 1).repeat(3, axis=2)
    square = cut(pixels, 6, np.random.default_rng(0))
    assert square[..., 0].tolist() == np.pad(pixels[..., 0], ((0, 2), (0, 1)), mode="reflect").tolist()


def test_world_gives_scenes_of_the_train_split() -> None:
    examples = degraded(World(64))
    assert len(examples) > 10_000_000
    first, other = examples.example(0, 1), examples.example(1, 1)
    assert not np.array_equal(first.truth, other.truth)


def test_batch_is_in_unit_range_with_noise_from_the_loss_seeds() -> None:
    examples = Degraded(World(64), Seams(), DIFFRIR.scaled(0.16), 2, 64, 64)
    made = [examples.example(position, position) for position in range(3)]
    batch = collate_for(16)(made, [7, 8, 9])
    assert {name: tuple(tensor.shape) for name, tensor in batch.items()} == {
        "truth": (3, 3, 64, 64),
        "target": (3, 3, 64, 64),
        "painted": (3, 3, 32, 32),
        "mask": (3, 1, 64, 64),
        "noise": (3, 16),
    }
    assert set(batch["mask"].unique().tolist()) == {0.0, 1.0}
    assert torch.equal(batch["truth"][1], torch.from_numpy(made[1].truth).permute(2, 0, 1) / 255)
    assert torch.equal(batch["noise"][2], torch.randn(16, generator=torch.Generator().manual_seed(9)))


def test_sharpening_raises_strong_details_and_leaves_flat_places() -> None:
    edge = np.full((200, 200, 3), 80, dtype=np.uint8)
    edge[:, 100:] = 160
    sharp = sharpen(edge)
    assert sharp[100, 100, 0] > 170
    assert sharp[100, 99, 0] < 70
    assert np.array_equal(sharp[:, :20], edge[:, :20])
    faint = np.full((200, 200, 3), 80, dtype=np.uint8)
    faint[:, 100:] = 90  # steps of less than twice ten levels are no strong details
    assert np.array_equal(sharpen(faint), faint)
