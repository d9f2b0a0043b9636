"""The networks against the published state dicts, and each piece against LLMGA.md §6.2 worked out by hand."""

from itertools import product
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional

from services.diffusion.restoration.config import RestorationConfig, Scale
from services.diffusion.restoration.network import (
    CPEN,
    Attention,
    BiasFreeNorm,
    DiffRIRS1,
    DiffRIRS2,
    FeedForward,
    join,
)
from tests.services.diffusion.restoration.networks import silenced, small_config, small_network

SCALES: tuple[Scale, ...] = (1, 2, 4)
TABLE = Path(__file__).with_name("published_state_dict.tsv")


def published(net: str) -> dict[str, tuple[int, ...]]:
    rows = [line.split("\t") for line in TABLE.read_text(encoding="utf-8").splitlines()[1:]]
    return {key: tuple(map(int, shape.split("x"))) for nets, key, shape in rows if net in nets.split(",")}


@pytest.mark.parametrize(("kind", "scale"), [*product((DiffRIRS1, DiffRIRS2), SCALES)])
def test_full_size_names_and_shapes_are_the_published_ones(kind: type[DiffRIRS1 | DiffRIRS2], scale: Scale) -> None:
    with torch.device("meta"):
        network = kind(RestorationConfig(scale=scale))
    wanted = published(f"{'S1' if kind is DiffRIRS1 else 'S2'}x{scale}")
    assert {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()} == wanted
    assert len(wanted) == (547 if kind is DiffRIRS1 else 615)
    assert 24.8e6 < sum(parameter.numel() for parameter in network.parameters()) < 25.1e6


@pytest.mark.parametrize(("scale", "channels", "entry", "multiple"), [(1, 6, 96, 32), (2, 15, 60, 16), (4, 51, 51, 8)])
def test_input_channels_and_multiples_are_the_published_ones(
    scale: Scale, channels: int, entry: int, multiple: int
) -> None:
    config = RestorationConfig(scale=scale)
    assert (config.input_channels, config.entry_channels, config.multiple) == (channels, entry, multiple)
    side = 8
    joined = join(torch.zeros(2, 3, side, side), torch.zeros(2, 3, side * scale, side * scale), scale)
    assert joined.shape == (2, channels, side, side)


def test_join_puts_the_painting_first_and_keeps_the_reference_beside_its_pixels() -> None:
    painted = torch.rand(1, 3, 2, 2)
    known = torch.arange(48.0).view(1, 3, 4, 4)
    joined = join(painted, known, 2)
    assert torch.equal(joined[:, :3], painted)
    # Channel 3 + 4c + 2i + j at (y, x) is the reference's channel c at (2y + i, 2x + j).
    for c, i, j in product(range(3), range(2), range(2)):
        assert torch.equal(joined[0, 3 + 4 * c + 2 * i + j], known[0, c, i::2, j::2])


@pytest.mark.parametrize("scale", SCALES)
def test_output_is_the_painting_enlarged_plus_a_change(scale: Scale) -> None:
    network = small_network(scale)
    config = network.config
    painted = torch.rand(2, 3, config.multiple, 2 * config.multiple)
    joined = join(painted, torch.rand(2, 3, scale * config.multiple, 2 * scale * config.multiple), scale)
    changed = network(joined, torch.randn(2, config.ipr_channels))
    unchanged = silenced(network)(joined, torch.randn(2, config.ipr_channels))
    enlarged = painted.repeat_interleave(scale, dim=2).repeat_interleave(scale, dim=3)
    assert torch.equal(unchanged, enlarged)
    assert (changed - enlarged).abs().mean() > 1e-3


@pytest.mark.parametrize("scale", SCALES)
def test_s1_sees_the_truth(scale: Scale) -> None:
    torch.manual_seed(0)
    network = DiffRIRS1(small_config(scale))
    side = network.config.multiple
    joined = torch.rand(1, network.config.input_channels, side, side)
    truth = torch.rand(1, 3, side * scale, side * scale)
    out = network(joined, truth)
    assert out.shape == truth.shape
    assert not torch.allclose(network.encode(joined, truth), network.encode(joined, 1 - truth))
    # The encoder's first convolution sees the unshuffled input, then the truth unshuffled by four.
    nn.init.zeros_(network.E.get_parameter("E.0.weight")[:, network.config.entry_channels :])
    assert torch.equal(network.encode(joined, truth), network.encode(joined, 1 - truth))


def test_norm_divides_by_the_deviation_and_keeps_the_mean() -> None:
    norm = BiasFreeNorm(4)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    x = torch.tensor([1.0, 3.0, 5.0, 7.0]).view(1, 4, 1, 1)  # mean 4, variance 5
    torch.testing.assert_close(norm(x).flatten(), torch.tensor([1.0, 6.0, 15.0, 28.0]) / 5.00001**0.5)


def test_attention_mixes_channels_within_heads() -> None:
    torch.manual_seed(1)
    attention = Attention(channels=8, heads=2, ipr_channels=6).double()
    with torch.no_grad():
        attention.temperature.copy_(torch.tensor([0.5, 2.0]).view(2, 1, 1))
    x, ipr = torch.randn(2, 8, 3, 5, dtype=torch.float64), torch.randn(2, 6, dtype=torch.float64)
    coefficients = ipr @ attention.get_parameter("kernel.0.weight").T  # (b, 2C): scales, then shifts
    modulated = x * coefficients[:, :8, None, None] + coefficients[:, 8:, None, None]
    qkv = functional.conv2d(modulated, attention.qkv.weight)
    qkv = functional.conv2d(qkv, attention.qkv_dwconv.weight, padding=1, groups=24)
    rows = []
    for b in range(2):
        mixed = torch.zeros(8, 15, dtype=torch.float64)
        for head, temperature in enumerate((0.5, 2.0)):
            q, k, v = (qkv[b, 8 * part + 4 * head :][:4].reshape(4, 15) for part in range(3))
            for i in range(4):
                scores = torch.stack([temperature * (q[i] @ k[j]) / (q[i].norm() * k[j].norm()) for j in range(4)])
                weights = scores.exp() / scores.exp().sum()
                mixed[4 * head + i] = sum(weights[j] * v[j] for j in range(4))
        rows.append(functional.conv2d(mixed.view(1, 8, 3, 5), attention.project_out.weight)[0])
    torch.testing.assert_close(attention(x, ipr), torch.stack(rows))


def test_feed_forward_layer_gates_with_its_first_half() -> None:
    torch.manual_seed(2)
    layer = FeedForward(channels=5, expansion=2.2, ipr_channels=3)
    assert layer.project_in.weight.shape == (22, 5, 1, 1)  # twice int(2.2 * 5)
    x, ipr = torch.randn(2, 5, 4, 4), torch.randn(2, 3)
    coefficients = ipr @ layer.get_parameter("kernel.0.weight").T
    inner = functional.conv2d(
        x * coefficients[:, :5, None, None] + coefficients[:, 5:, None, None], layer.project_in.weight
    )
    inner = functional.conv2d(inner, layer.dwconv.weight, padding=1, groups=22)
    gated = inner[:, :11] * torch.special.ndtr(inner[:, :11]) * inner[:, 11:]
    torch.testing.assert_close(layer(x, ipr), functional.conv2d(gated, layer.project_out.weight))


def test_encoder_averages_over_pictures_of_any_size() -> None:
    torch.manual_seed(3)
    encoder = CPEN(in_channels=6, n_feats=4, n_encoder_res=1)
    for layer in encoder.modules():  # without borders every place sees the same
        if isinstance(layer, nn.Conv2d):
            layer.padding_mode = "reflect"
            layer._reversed_padding_repeated_twice = [1, 1, 1, 1]
    vector = torch.rand(1, 6, 1, 1)
    small, large = encoder(vector.expand(1, 6, 4, 4)), encoder(vector.expand(1, 6, 9, 12))
    assert small.shape == (1, 16)
    torch.testing.assert_close(small, large)
    assert (small.sign() == -1).any()  # the last activation is leaky, so negative parts pass


def test_all_parts_of_s2_learn_from_the_finished_picture() -> None:
    network = small_network()
    joined = torch.rand(1, 6, 32, 32)
    network(joined, torch.randn(1, network.config.ipr_channels)).sum().backward()
    without = [name for name, parameter in network.named_parameters() if parameter.grad is None]
    assert without == []
