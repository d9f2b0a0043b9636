"""VGG19's features and the discriminator."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from training.restoration.adversary import FEATURE_WEIGHTS, WEIGHTS, Critic, MissingWeights, Perceptual


def test_layers_are_those_of_vgg19() -> None:
    with torch.device("meta"):
        features = Perceptual().features
    shapes = {
        number: tuple(layer.weight.shape) for number, layer in enumerate(features) if isinstance(layer, nn.Conv2d)
    }
    assert shapes == {
        0: (64, 3, 3, 3),
        2: (64, 64, 3, 3),
        5: (128, 64, 3, 3),
        7: (128, 128, 3, 3),
        10: (256, 128, 3, 3),
        12: (256, 256, 3, 3),
        14: (256, 256, 3, 3),
        16: (256, 256, 3, 3),
        19: (512, 256, 3, 3),
        21: (512, 512, 3, 3),
        23: (512, 512, 3, 3),
        25: (512, 512, 3, 3),
        28: (512, 512, 3, 3),
        30: (512, 512, 3, 3),
        32: (512, 512, 3, 3),
        34: (512, 512, 3, 3),
    }
    # conv1_2, conv2_2, conv3_4, conv4_4 and conv5_4, each before its ReLU
    assert FEATURE_WEIGHTS == {2: 0.1, 7: 0.1, 16: 1.0, 25: 1.0, 34: 1.0}
    assert [number for number, layer in enumerate(features) if isinstance(layer, nn.MaxPool2d)] == [4, 9, 18, 27]


def test_distance_is_the_weighted_sum_over_features_of_normalized_pictures() -> None:
    torch.manual_seed(0)
    perceptual = Perceptual(narrower=16)
    x, target = torch.rand(2, 3, 32, 32), torch.rand(2, 3, 32, 32)
    mean, std = (torch.tensor(numbers).view(1, 3, 1, 1) for numbers in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    wanted, a, b = torch.zeros(()), (x - mean) / std, (target - mean) / std
    for number, layer in enumerate(perceptual.features):
        a, b = layer(a), layer(b)
        wanted = wanted + {2: 0.1, 7: 0.1, 16: 1.0, 25: 1.0, 34: 1.0}.get(number, 0.0) * (a - b).abs().mean()
    torch.testing.assert_close(perceptual(x, target), wanted)
    assert perceptual(x, x) == 0
    assert not any(parameter.requires_grad for parameter in perceptual.parameters())


def test_weights_are_loaded_from_a_whole_classifier(tmp_path: Path) -> None:
    torch.manual_seed(1)
    saved = Perceptual(narrower=16)
    save_file({**saved.state_dict(), "classifier.0.weight": torch.zeros(2, 2)}, tmp_path / WEIGHTS)
    loaded = Perceptual.load(tmp_path)
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in saved.state_dict().items())


def test_missing_or_other_weights_are_refused_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(MissingWeights, match=r"model\.safetensors is missing; save VGG19"):
        Perceptual.load(tmp_path)
    save_file({"features.0.weight": torch.zeros(64, 3, 3, 3)}, tmp_path / WEIGHTS)
    with pytest.raises(MissingWeights, match="is not VGG19; save VGG19"):
        Perceptual.load(tmp_path)


def test_critic_judges_every_pixel_through_normed_layers() -> None:
    torch.manual_seed(2)
    critic = Critic(4)
    assert critic(torch.rand(2, 3, 32, 48)).shape == (2, 1, 32, 48)
    for _ in range(20):
        critic(torch.rand(1, 3, 8, 8))  # each call turns the power iteration once
    for name, layer in critic.named_modules():
        if isinstance(layer, nn.Conv2d) and name not in ("conv0", "last.4"):
            assert layer.bias is None
            norm = torch.linalg.matrix_norm(layer.weight.detach().flatten(1), ord=2)
            assert norm == pytest.approx(1, abs=0.05)


def test_critic_has_the_published_number_of_parameters() -> None:
    with torch.device("meta"):
        critic = Critic(64)
    # 3x3 or 4x4 convolutions: 3-64, 64-128, 128-256, 256-512, 512-256, 256-128, 128-64, 64-64 twice, 64-1
    wanted = 9 * 3 * 64 + 64 + 16 * (64 * 128 + 128 * 256 + 256 * 512)
    wanted += 9 * (512 * 256 + 256 * 128 + 128 * 64 + 2 * 64 * 64 + 64) + 1
    assert sum(parameter.numel() for parameter in critic.parameters()) == wanted
