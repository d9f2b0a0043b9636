"""What an autoencoder of the tiny world learns from, and how its latents are standardized afterwards.

The loss is in brightness and two color differences, because a small network spends itself on brightness and the
caption speaks of colors; pixels near an edge count more, because objects are small and backgrounds are not.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from training.data.masks import SD_STAGE2, MaskSpec, draw_mask
from training.runs import Batch
from training.world import draw, sample_scene

Pixels = npt.NDArray[np.uint8]  # (height, width, 3)

SCALING_FACTOR = 0.18215  # SD1.5's, which clients and tools may have written down
WORLD_SIZE = 1 << 20  # scenes of one pass
MASKED_SHARE = 0.25  # inpainting encodes pictures with a gray hole
GRAY = 128  # the hole of a masked picture: nearly 0 in [-1, 1]
EDGE_RADIUS = 2  # pixels

# From RGB to brightness and two color differences (BT.601); the color differences count twice.
_LUMA = ((0.299, 0.587, 0.114), (-0.169, -0.331, 0.5), (0.5, -0.419, -0.081))
_COLOR_WEIGHT = 2.0


@dataclass(frozen=True, slots=True)
class WorldPictures:
    """Crops of pictures of the train split; some have a gray hole."""

    size: int
    crop: int
    masks: MaskSpec

    def __len__(self) -> int:
        return WORLD_SIZE

    def example(self, position: int, seed: int) -> Pixels:
        """Return a crop of a picture, uint8 (crop, crop, 3)."""
        pixels = draw(sample_scene(position), self.size)
        generator = np.random.default_rng(seed)
        if generator.random() < MASKED_SHARE:
            mask, _ = draw_mask(self.size, self.size, self.masks, generator)
            pixels = np.where(mask[..., None] > 0, np.uint8(GRAY), pixels)
        top, left = generator.integers(self.size - self.crop, size=2, endpoint=True)
        return pixels[top : top + self.crop, left : left + self.crop]


def masks_of(size: int) -> MaskSpec:
    """Return stage 2's masks for pictures of this size; without those that cover everything."""
    return replace(SD_STAGE2.scaled(size / 512), everything=0.0)


def to_unit(pixels: torch.Tensor) -> torch.Tensor:
    """Return uint8 (..., h, w, 3) as float32 (..., 3, h, w) in [-1, 1]."""
    return pixels.movedim(-1, -3).float().div(127.5).sub(1).contiguous()


def collate(examples: list[Pixels], seeds: list[int]) -> Batch:
    """Stack pictures, with the noise of the posterior (b, 4, h/8, w/8)."""
    pixels = torch.from_numpy(np.stack(examples))
    height, width = pixels.shape[1:3]
    noise = [torch.randn(4, height // 8, width // 8, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return {"pixels": pixels, "noise": torch.stack(noise)}


@torch.no_grad()
def initialize(vae: Any) -> None:
    """Give a new autoencoder a path from pixels to pixels: every convolution but a residual's hands its input on.

    Group normalization would leave of a plain picture no more than which channel is larger, so biases are wide: next
    to a constant, a channel's size survives it. And the posterior begins narrow, or its noise hides the picture.
    """
    for name, module in vae.named_modules():
        if not isinstance(module, torch.nn.Conv2d):
            continue
        if name.endswith("conv2"):
            module.weight.zero_()
        elif not name.endswith("conv1"):
            module.weight += torch.nn.init.dirac_(torch.empty_like(module.weight))
        if module.bias is not None and not name.endswith(("conv2", "conv_out", "quant_conv")):
            module.bias.normal_(std=0.5)
    channels = vae.config.latent_channels
    vae.quant_conv.weight[channels:] = 0
    vae.quant_conv.bias[channels:] = -6  # a standard deviation of 0.05


class Reconstruction(torch.nn.Module):
    """An autoencoder as one call, so that several processes can add up its gradients."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, pixels: torch.Tensor, noise: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return (picture, mean, log variance)."""
        posterior = self.vae.encode(pixels).latent_dist
        sample = posterior.mean + posterior.std * noise
        return self.vae.decode(sample).sample, posterior.mean, posterior.logvar


def loss_of(model: Any, batch: Batch, *, kl_weight: float) -> dict[str, torch.Tensor]:
    """Return the color-weighted L1 distance plus a little KL divergence."""
    pixels = to_unit(batch["pixels"])
    picture, mean, logvar = model(pixels, batch["noise"])
    matrix = pixels.new_tensor(_LUMA)
    matrix = matrix * matrix.new_tensor([1.0, _COLOR_WEIGHT, _COLOR_WEIGHT])[:, None]
    difference = torch.einsum("oc,bchw->bohw", matrix, picture.float() - pixels).abs().sum(1)
    weight = 1 + 2 * _edges(pixels)
    distance = (weight * difference).mean()
    kl = 0.5 * (mean.float().square() + logvar.float().exp() - 1 - logvar.float()).mean()
    with torch.no_grad():
        plain = (picture.float() - pixels).abs().mean()
    return {"loss": distance + kl_weight * kl, "l1": plain, "kl": kl}


def _edges(pixels: torch.Tensor) -> torch.Tensor:
    """Return the range of brightness around each pixel, (b, h, w) in [0, 2]."""
    gray = pixels.amax(1, keepdim=True) + pixels.amin(1, keepdim=True)
    gray = torch.cat([gray / 2, pixels], 1)
    side = 2 * EDGE_RADIUS + 1
    highest = F.max_pool2d(gray, side, stride=1, padding=EDGE_RADIUS)
    lowest = -F.max_pool2d(-gray, side, stride=1, padding=EDGE_RADIUS)
    return (highest - lowest).amax(1)


class Moments(NamedTuple):
    """Mean and standard deviation of each latent channel."""

    mean: torch.Tensor
    std: torch.Tensor


@torch.no_grad()
def moments_of(vae: Any, pictures: Sequence[Pixels], *, batch: int = 32) -> Moments:
    """Return the moments of the latents (posterior means) of these pictures, without the scaling factor."""
    latents = torch.cat(
        [
            vae.encode(to_unit(torch.from_numpy(np.stack(pictures[start : start + batch])))).latent_dist.mean
            for start in range(0, len(pictures), batch)
        ]
    ).double()
    return Moments(latents.mean((0, 2, 3)), latents.std((0, 2, 3), correction=0))


@torch.no_grad()
def standardize(vae: Any, moments: Moments, scaling_factor: float = SCALING_FACTOR) -> None:
    """Fold shift and scale into the 1x1 convolutions around the latents; pictures stay what they were.

    `latents * scaling_factor` has zero mean and unit variance behind it.
    """
    factor = 1 / (moments.std * scaling_factor)  # of the latents: (z - mean) * factor
    channels = len(factor)
    quant, post_quant = vae.quant_conv, vae.post_quant_conv
    weight, bias = quant.weight.double(), quant.bias.double()
    weight[:channels] *= factor[:, None, None, None]
    bias[:channels] = (bias[:channels] - moments.mean) * factor
    bias[channels:] += 2 * factor.log()  # the posterior's log variance
    quant.weight.copy_(weight)
    quant.bias.copy_(bias)
    weight = post_quant.weight.double()
    post_quant.bias.copy_(post_quant.bias.double() + (weight[:, :, 0, 0] * moments.mean).sum(1))
    post_quant.weight.copy_(weight / factor[:, None, None])
    vae.register_to_config(scaling_factor=scaling_factor)
