"""Previews: what a picture under way is going to look like, for a small share of the device's time.

A preview shows the clean latents that the solver's last answer points to (`Solver.denoised`), not the noisy ones. They
become colors by a linear map, one color per latent, that is fitted to the checkpoint's own autoencoder when it is
loaded; or by a tiny decoder (TAESD), where one is given for the kind of checkpoint. Nothing here can change a picture:
a preview reads tensors that no step changes in place, and draws no noise.
"""

from pathlib import Path
from typing import Any, Protocol

import torch
from torch.nn.functional import avg_pool2d, interpolate

from services.diffusion.libraries import AutoencoderTiny

MAX_SIDE_PX = 256  # of a preview; clients scale it to where the picture is going to be
DEVICE_SHARE = 0.05  # of the time of the UNet's calls
_MAX_SAVED_S = 0.05  # so that an hour without previews is no reason to hold a step up later

_FIT_SIDE_PX = 64
_FIT_CELLS = (1, 2, 4, 8)  # patches a side: flat colors, large areas, details
_FIT_PICTURES = 4  # of each


class Unsuitable(Exception):
    """The folder holds no decoder for previews; the message says what is wrong with it."""


class Previewer(Protocol):
    """Turns clean latents into a small picture; belongs to the device thread."""

    def __call__(self, latents: torch.Tensor) -> torch.Tensor:
        """Return uint8 (height, width, 3) on the CPU, of latents (1, 4, h/8, w/8)."""


class LinearMap:
    """Colors as a linear function of each latent. weight: float32 (3, 4); bias: (3,); colors from -1 to 1."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor) -> None:
        self.weight = weight
        self.bias = bias

    @classmethod
    def fit(cls, vae: Any) -> "LinearMap":
        """Fit the map to an autoencoder by least squares: the same weights give the same map.

        The latents are those of simple pictures, the colors what the decoder makes of them: a map fitted to noise
        would show the decoder's idea of noise.
        """
        parameter = next(vae.parameters())
        with torch.inference_mode():
            pictures = _simple_pictures().to(parameter)
            latents = vae.encode(pictures).latent_dist.mode()
            decoded = vae.decode(latents, return_dict=False)[0].float().clamp(-1, 1)
            colors = avg_pool2d(decoded, decoded.shape[-1] // latents.shape[-1])
        inputs = _by_place(latents.float() * vae.config.scaling_factor)
        inputs = torch.cat([inputs, inputs.new_ones(len(inputs), 1)], dim=1)
        # The driver that takes matrices of any rank: an autoencoder may leave a channel unused.
        solution = torch.linalg.lstsq(inputs, _by_place(colors), driver="gelsd").solution.float().T
        return cls(
            solution[:, :-1].contiguous().to(parameter.device), solution[:, -1].contiguous().to(parameter.device)
        )

    def to(self, device: torch.device) -> "LinearMap":
        """Return the map on a device."""
        return LinearMap(self.weight.to(device), self.bias.to(device))

    def __call__(self, latents: torch.Tensor) -> torch.Tensor:
        """Return one pixel per latent (`Previewer`)."""
        colors = torch.einsum("oc,chw->ohw", self.weight, latents[0].float()) + self.bias[:, None, None]
        return _pixels(colors[None])


class TinyDecoder:
    """TAESD (Ollin Boer Bohan): a decoder of a million parameters, for latents of one kind of checkpoint."""

    def __init__(self, decoder: Any) -> None:
        self._decoder = decoder
        self._dtype: torch.dtype = next(decoder.parameters()).dtype

    @classmethod
    def load(cls, folder: Path, *, device: torch.device, dtype: torch.dtype) -> "TinyDecoder":
        """Load a folder of diffusers' `AutoencoderTiny`, safetensors only.

        Raises:
            Unsuitable: there is none in the folder, or it is not for latents of four channels.
        """
        try:
            decoder, report = AutoencoderTiny.from_pretrained(
                folder, use_safetensors=True, local_files_only=True, torch_dtype=dtype, output_loading_info=True
            )
        except Exception as error:  # whatever the library found wrong
            raise Unsuitable(f"{folder} holds no tiny autoencoder of diffusers in safetensors") from error
        if report["missing_keys"] or report["mismatched_keys"]:
            raise Unsuitable(f"{folder} holds the weights of something else than a tiny autoencoder")
        if decoder.config.latent_channels != 4:
            raise Unsuitable(f"{folder} decodes {decoder.config.latent_channels} channels; the latents have 4")
        return cls(decoder.to(device).eval().requires_grad_(False))

    def __call__(self, latents: torch.Tensor) -> torch.Tensor:
        """Return the decoded picture, at most `MAX_SIDE_PX` a side (`Previewer`)."""
        decoded = self._decoder.decode(latents.to(self._dtype), return_dict=False)[0].float()
        longest = max(decoded.shape[2:])
        if longest > MAX_SIDE_PX:
            height, width = (max(1, side * MAX_SIDE_PX // longest) for side in decoded.shape[2:])
            decoded = interpolate(decoded, (height, width), mode="area")
        return _pixels(decoded)


class Allowance:
    """Device time for previews: a share of the time that UNet calls take, paid back before the next is made."""

    def __init__(self, share: float = DEVICE_SHARE) -> None:
        self._share = share
        self._saved_s = 0.0

    @property
    def is_left(self) -> bool:
        """Whether a preview may be made now."""
        return self._saved_s >= 0

    def earn(self, call_s: float) -> None:
        """Count a UNet call."""
        self._saved_s = min(self._saved_s + self._share * call_s, _MAX_SAVED_S)

    def spend(self, seconds: float) -> None:
        """Count a preview."""
        self._saved_s -= seconds


def calls_shown(calls: int, previews: int) -> frozenset[int]:
    """Return the numbers of the calls, from 1, behind which a picture of `calls` calls is shown.

    They are evenly spread and leave out the last, which is followed by the picture itself.
    """
    return frozenset(round(number * calls / (previews + 1)) for number in range(1, previews + 1)) - {0, calls}


def _simple_pictures() -> torch.Tensor:
    """Return pictures (n, 3, side, side) from -1 to 1 of random patches, as sharp areas and as soft ones."""
    generator = torch.Generator().manual_seed(0)
    pictures = []
    for cells in _FIT_CELLS:
        patches = torch.rand((_FIT_PICTURES, 3, cells, cells), generator=generator) * 2 - 1
        size = (_FIT_SIDE_PX, _FIT_SIDE_PX)
        pictures += [interpolate(patches[::2], size), interpolate(patches[1::2], size, mode="bilinear")]
    return torch.cat(pictures)


def _by_place(maps: torch.Tensor) -> torch.Tensor:
    """Return maps (n, c, h, w) as float64 (n h w, c) on the CPU."""
    return maps.permute(0, 2, 3, 1).flatten(0, 2).double().cpu()


def _pixels(colors: torch.Tensor) -> torch.Tensor:
    """Return uint8 (h, w, 3) of colors (1, 3, h, w) from -1 to 1; what is not a number is gray."""
    unit = torch.nan_to_num(colors[0], nan=0.0).clamp(-1, 1) * 0.5 + 0.5
    return (unit * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().contiguous()
