"""What the last step holds against the network: a discriminator and the features of VGG19 (LLMGA.md §6.3, "S2-GAN")."""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import spectral_norm

RGB = 3
# VGG19's convolutions, by their width; "M" halves the sides.
_WIDTH = 64
_VGG19 = (_WIDTH, _WIDTH, "M", 128, 128, "M", 256, 256, 256, 256, "M", 512, 512, 512, 512, "M", 512, 512, 512, 512)
# Weights of the features before their ReLU: conv1_2, conv2_2, conv3_4, conv4_4, conv5_4 by their place in torchvision's
# `features`.
FEATURE_WEIGHTS = {2: 0.1, 7: 0.1, 16: 1.0, 25: 1.0, 34: 1.0}
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
WEIGHTS = "model.safetensors"


class MissingWeights(Exception):
    """VGG19's weights are not where the recipe says."""


class Perceptual(nn.Module):
    """L1 distance of VGG19's features."""

    mean: Tensor
    std: Tensor

    def __init__(self, *, narrower: int = 1) -> None:
        """Make the layers with random weights; `narrower` divides their widths."""
        super().__init__()
        layers: list[nn.Module] = []
        channels = RGB
        for width in _VGG19:
            if isinstance(width, str):
                layers.append(nn.MaxPool2d(2))
                continue
            layers += [nn.Conv2d(channels, width // narrower, 3, padding=1), nn.ReLU()]
            channels = width // narrower
        self.features = nn.ModuleList(layers[: max(FEATURE_WEIGHTS) + 1])
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, RGB, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, RGB, 1, 1), persistent=False)
        self.requires_grad_(False)

    @classmethod
    def load(cls, folder: Path) -> "Perceptual":
        """Load torchvision's or timm's VGG19 (names `features.<n>.weight`); what comes after is left out.

        Raises:
            MissingWeights: they are not there, or are of another network.
        """
        path = folder / WEIGHTS
        remedy = (
            "save VGG19 as trained on ImageNet there, under torchvision's names (`features.0.weight`, …), "
            "with safetensors.torch.save_file"
        )
        if not path.is_file():
            raise MissingWeights(f"{path} is missing; {remedy}")
        try:
            tensors = load_file(path)
            network = cls(narrower=_WIDTH // len(tensors["features.0.weight"]))
            network.load_state_dict({name: tensors[name] for name in network.state_dict()})
        except (SafetensorError, KeyError, RuntimeError, ZeroDivisionError):
            raise MissingWeights(f"{path} is not VGG19; {remedy}") from None
        return network

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        """Return the weighted distance of two pictures (b, 3, h, w) in [0, 1]."""
        distance = x.new_zeros(())
        x, target = (x - self.mean) / self.std, (target - self.mean) / self.std
        for number, layer in enumerate(self.features):
            x, target = layer(x), layer(target)
            if number in FEATURE_WEIGHTS:
                distance = distance + FEATURE_WEIGHTS[number] * functional.l1_loss(x, target)
        return distance


class Critic(nn.Module):
    """U-Net with spectral norms that says of every pixel whether it is real (Real-ESRGAN's discriminator)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        n = channels
        self.conv0 = nn.Conv2d(RGB, n, 3, padding=1)
        self.down = nn.ModuleList(_normed(n * 2**i, n * 2 ** (i + 1), 4, stride=2) for i in range(3))
        self.up = nn.ModuleList(_normed(n * 2 ** (i + 1), n * 2**i, 3) for i in reversed(range(3)))
        self.last = nn.Sequential(
            _normed(n, n, 3), nn.LeakyReLU(0.2), _normed(n, n, 3), nn.LeakyReLU(0.2), nn.Conv2d(n, 1, 3, padding=1)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (b, 1, h, w) of pictures (b, 3, h, w) whose sides are multiples of 8."""
        skips = [functional.leaky_relu(self.conv0(x), 0.2)]
        for layer in self.down:
            skips.append(functional.leaky_relu(layer(skips[-1]), 0.2))
        x = skips.pop()
        for layer in self.up:
            x = functional.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)
            x = functional.leaky_relu(layer(x), 0.2) + skips.pop()
        out: Tensor = self.last(x)
        return out


def _normed(channels: int, out_channels: int, size: int, stride: int = 1) -> nn.Module:
    convolution = nn.Conv2d(channels, out_channels, size, stride=stride, padding=1, bias=False)
    normed: nn.Module = spectral_norm(convolution)
    return normed
