"""Restoration of pictures: known pixels never change, and a picture depends on its seed alone."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from services.diffusion.restoration.checkpoints import save
from services.diffusion.restoration.config import Scale
from services.diffusion.restoration.network import DiffRIRS2, join
from services.diffusion.restoration.restorer import TILE_OVERLAP_PX, Painting, Pixels, Restorer, spans
from tests.services.diffusion.restoration.networks import silenced, small_network

RESTORERS: dict[Scale, Restorer] = {scale: Restorer(small_network(scale)) for scale in (1, 2, 4)}


def painting(height: int, width: int, *, scale: int = 1, seed: int = 0, share: float = 0.5) -> Painting:
    """Return noise of which about `share` is painted; height and width are the finished picture's."""
    generator = np.random.default_rng(seed)
    return Painting(
        painted=generator.integers(0, 256, (height // scale, width // scale, 3), dtype=np.uint8),
        mask=np.where(generator.random((height, width)) < share, 255, 0).astype(np.uint8),
        known=generator.integers(0, 256, (height, width, 3), dtype=np.uint8),
        seed=seed,
    )


def finished(restorer: Restorer, picture: Painting) -> Pixels:
    return restorer.restore_batch([picture])[0]


@settings(max_examples=40, deadline=None)
@given(
    scale=st.sampled_from([1, 2, 4]),
    height=st.integers(1, 20),
    width=st.integers(1, 20),
    share=st.sampled_from([0.0, 0.1, 0.9, 1.0]),
    seed=st.integers(0, 2**31),
)
def test_known_pixels_are_bit_equal_at_any_size_and_mask(
    scale: Scale, height: int, width: int, share: float, seed: int
) -> None:
    picture = painting(height * scale, width * scale, scale=scale, seed=seed, share=share)
    out = finished(RESTORERS[scale], picture)
    assert out.shape == picture.known.shape
    assert out.dtype == np.uint8
    is_known = picture.mask < 128
    assert np.array_equal(out[is_known], picture.known[is_known])


@pytest.mark.parametrize("size", [(33, 65), (101, 47), (128, 128), (31, 200)])
@pytest.mark.parametrize("scale", [1, 2, 4])
def test_painted_pixels_are_the_networks(size: tuple[int, int], scale: Scale) -> None:
    height, width = (side * scale for side in size)
    picture = painting(height, width, scale=scale, seed=3)
    network, multiple = small_network(scale), RESTORERS[scale].config.multiple
    rows, columns = -size[0] % multiple, -size[1] % multiple
    is_known = (picture.mask < 128)[..., None]
    painted = np.pad(picture.painted, ((0, rows), (0, columns), (0, 0)), mode="reflect")
    known = np.pad(
        np.where(is_known, picture.known, 0), ((0, rows * scale), (0, columns * scale), (0, 0)), mode="reflect"
    )
    painted_tensor, known_tensor = (
        torch.from_numpy(array / 255).float().permute(2, 0, 1)[None] for array in (painted, known)
    )
    x_t = torch.randn(1, network.config.ipr_channels, generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        expected = (
            network(join(painted_tensor, known_tensor, scale), x_t)[0, :, :height, :width]
            .permute(1, 2, 0)
            .clamp(0, 1)
            .numpy()
            * 255
        )
    out = finished(RESTORERS[scale], picture)
    difference = np.abs(out.astype(float) - expected)[~is_known[..., 0]]
    assert difference.max() <= 0.51
    assert np.abs(out.astype(float) - np.kron(picture.painted, np.ones((scale, scale, 1)))).mean() > 1


def test_mask_is_binarized_at_one_half() -> None:
    picture = painting(32, 32)
    mask = np.full((32, 32), 127, dtype=np.uint8)
    assert np.array_equal(finished(RESTORERS[1], Painting(picture.painted, mask, picture.known, 0)), picture.known)
    out = finished(RESTORERS[1], Painting(picture.painted, mask + np.uint8(1), picture.known, 0))
    assert not np.array_equal(out, picture.known)


def test_pixels_under_the_mask_are_not_looked_at() -> None:
    picture = painting(40, 40, seed=1)
    other = np.where(picture.mask[..., None] >= 128, 255 - picture.known, picture.known)
    out = finished(RESTORERS[1], Painting(picture.painted, picture.mask, other, 1))
    assert np.array_equal(out, finished(RESTORERS[1], picture))


def test_equal_seeds_give_equal_pictures_and_other_seeds_others() -> None:
    picture = painting(48, 64, seed=2)
    first, again, other = (
        finished(RESTORERS[1], Painting(picture.painted, picture.mask, picture.known, seed)) for seed in (7, 7, 8)
    )
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_pictures_of_mixed_sizes_come_back_in_order_as_if_alone() -> None:
    pictures = [painting(height, width, seed=seed) for seed, (height, width) in enumerate([(40, 33), (64, 64)] * 3)]
    together = RESTORERS[1].restore_batch(pictures)
    for picture, out in zip(pictures, together, strict=True):
        alone = finished(RESTORERS[1], picture).astype(int)
        assert np.abs(out - alone).max() <= 1


def test_no_pictures_are_no_work() -> None:
    assert RESTORERS[1].restore_batch([]) == []


def tiled(network: DiffRIRS2) -> Restorer:
    return Restorer(network, tile_side_px=2 * TILE_OVERLAP_PX)


@pytest.mark.parametrize("scale", [1, 2, 4])
def test_tiles_that_change_nothing_add_up_to_the_painting(scale: Scale) -> None:
    picture = painting(300, 500, scale=scale, share=1)
    out = finished(tiled(silenced(small_network(scale))), picture)
    assert np.array_equal(out, picture.painted.repeat(scale, axis=0).repeat(scale, axis=1))


def test_neighboring_tiles_fade_into_each_other() -> None:
    network = small_network()
    shades = iter((0.0, 1.0))
    network.G.register_forward_hook(lambda _, inputs, output: torch.full_like(output, next(shades)))
    picture = painting(128, 192, share=1)
    out = finished(tiled(network), picture)[0, :, 0].astype(int)
    assert out[:64].tolist() == [0] * 64
    assert out[128:].tolist() == [255] * 64
    steps = np.diff(out[63:129])
    assert steps.min() >= 3  # 255 levels over an overlap of 64 pixels
    assert steps.max() <= 5


def test_tiles_share_the_prior_of_the_whole_picture() -> None:
    network = small_network()
    seen: list[torch.Tensor] = []
    network.G.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[1]))
    finished(tiled(network), painting(200, 200, share=1))
    assert len(seen) == 9
    assert all(torch.equal(prior, seen[0]) for prior in seen)


def test_tiles_without_painted_pixels_are_not_computed() -> None:
    network = small_network()
    sizes: list[tuple[int, ...]] = []
    network.G.register_forward_pre_hook(lambda _, inputs: sizes.append(tuple(inputs[0].shape)))
    picture = painting(128, 512, share=0)
    picture.mask[60:70, 3:9] = 255
    out = finished(tiled(network), picture)
    assert sizes == [(1, 6, 128, 128)]
    assert not np.array_equal(out[60:70, 3:9], picture.known[60:70, 3:9])


@given(length=st.integers(1, 5_000), side=st.integers(130, 1_100), overlap=st.integers(1, 64))
def test_tiles_cover_all_and_overlap(length: int, side: int, overlap: int) -> None:
    tiles = spans(length, side, overlap)
    assert tiles[0][0] == 0
    assert tiles[-1][1] == length
    assert all(end - start == min(side, length) for start, end in tiles)
    assert all(end - start >= overlap for (_, end), (start, _) in pairwise(tiles))


def test_bfloat16_stays_within_a_few_levels() -> None:
    picture = painting(96, 80, seed=4)
    exact = finished(RESTORERS[1], picture).astype(int)
    rounded = finished(Restorer(small_network(), dtype=torch.bfloat16), picture).astype(int)
    assert not np.array_equal(exact, rounded)
    assert np.abs(exact - rounded).mean() < 2


def test_bfloat16_does_not_round_the_painting_itself() -> None:
    picture = painting(64, 64, share=1)
    assert np.array_equal(finished(Restorer(silenced(small_network()), dtype=torch.bfloat16), picture), picture.painted)


def test_folder_is_loaded(tmp_path: Path) -> None:
    save(small_network(2), tmp_path)
    restorer = Restorer.load(tmp_path)
    picture = painting(50, 30, scale=2)
    assert restorer.config.scale == 2
    assert np.array_equal(finished(restorer, picture), finished(RESTORERS[2], picture))


def test_wrong_arguments_are_refused() -> None:
    one, two = painting(32, 32), painting(34, 34, scale=2)
    with pytest.raises(ValueError, match="known must be"):
        finished(RESTORERS[1], Painting(one.painted, one.mask, one.known[:-1], 0))
    with pytest.raises(ValueError, match=r"painted must be \(17, 17, 3\) at scale 2"):
        finished(RESTORERS[2], Painting(two.known, two.mask, two.known, 0))
    with pytest.raises(ValueError, match="multiples of 4"):
        finished(RESTORERS[4], Painting(two.painted, two.mask, two.known, 0))
    with pytest.raises(ValueError, match="mask must be uint8"):
        finished(RESTORERS[1], Painting(one.painted, one.mask > 0, one.known, 0))  # type: ignore[arg-type] # that is the point
    with pytest.raises(ValueError, match="float32 or bfloat16"):
        Restorer(small_network(), dtype=torch.float16)
    with pytest.raises(ValueError, match="sides of 128 pixels"):
        Restorer(small_network(), tile_side_px=64)
