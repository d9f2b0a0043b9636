"""The traces of an autoencoder as a degradation: what every painted picture has, wherever it was painted."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from training.data.degradations import Degradation, Pixels, to_pixels
from training.data.formats import DataError


@dataclass(frozen=True, slots=True)
class Autoencoded:
    """Pass a picture through an autoencoder before it is degraded further."""

    vae: Any  # diffusers' AutoencoderKL
    further: Degradation

    @classmethod
    def load(cls, folder: Path, further: Degradation) -> "Autoencoded":
        """Load an autoencoder in diffusers layout.

        Raises:
            DataError: there is none.
        """
        from services.diffusion.libraries import AutoencoderKL

        try:
            vae = AutoencoderKL.from_pretrained(folder, use_safetensors=True, local_files_only=True)
        except (OSError, ValueError):
            raise DataError(f"{folder}: this is no autoencoder in diffusers layout; correct `--autoencoder`") from None
        return cls(vae.eval().requires_grad_(False), further)

    def __call__(self, pixels: Pixels, scale: int, generator: np.random.Generator) -> Pixels:
        """Return uint8 (h / scale, w / scale, 3); sides are multiples of the autoencoder's factor."""
        with torch.inference_mode():
            picture = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float().div(127.5).sub(1)
            decoded = self.vae.decode(self.vae.encode(picture).latent_dist.mode()).sample
        return self.further(to_pixels(decoded[0].permute(1, 2, 0).numpy() / 2 + np.float32(0.5)), scale, generator)
