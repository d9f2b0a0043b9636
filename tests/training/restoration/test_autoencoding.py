"""Pictures that went through an autoencoder."""

from pathlib import Path

import numpy as np
import pytest
import torch

from services.diffusion.libraries import AutoencoderKL
from training.data.degradations import Pixels
from training.data.formats import DataError
from training.restoration.autoencoding import Autoencoded


class Halved:
    """A degradation that is seen in its result."""

    def __call__(self, pixels: Pixels, scale: int, generator: np.random.Generator) -> Pixels:
        return (pixels // 2)[::scale, ::scale]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("vae")
    AutoencoderKL(
        block_out_channels=(8, 8),
        norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
    ).save_pretrained(path)
    return path


def test_picture_is_decoded_from_its_latents_and_then_degraded(folder: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8)
    degradation = Autoencoded.load(folder, Halved())
    with torch.no_grad():
        picture = torch.from_numpy(pixels / 127.5 - 1).float().permute(2, 0, 1)[None]
        decoded = degradation.vae.decode(degradation.vae.encode(picture).latent_dist.mean).sample[0]
    wanted = ((decoded.permute(1, 2, 0) / 2 + 0.5).clamp(0, 1) * 255).round().numpy().astype(np.uint8) // 2
    assert np.array_equal(degradation(pixels, 1, np.random.default_rng(0)), wanted)
    assert np.array_equal(degradation(pixels, 2, np.random.default_rng(0)), wanted[::2, ::2])


def test_folder_without_an_autoencoder_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"{tmp_path}: this is no autoencoder"):
        Autoencoded.load(tmp_path, Halved())
