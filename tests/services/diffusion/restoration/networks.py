"""Networks small enough for tests, with every part of the published ones."""

import torch

from services.diffusion.restoration.config import RestorationConfig, Scale
from services.diffusion.restoration.network import DiffRIRS2


def small_config(scale: Scale) -> RestorationConfig:
    return RestorationConfig(
        scale=scale,
        dim=8,
        num_blocks=(2, 1, 1, 1),
        num_refinement_blocks=1,
        heads=(1, 2, 4, 8),
        n_feats=4,
        n_encoder_res=2,
    )


def small_network(scale: Scale = 1, *, seed: int = 0) -> DiffRIRS2:
    """Return a network whose output visibly differs from its input."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = DiffRIRS2(small_config(scale))
        for module in network.modules():
            if isinstance(module, torch.nn.Conv2d):
                torch.nn.init.normal_(module.weight, std=1.2 / module.weight[0].numel() ** 0.5)
    return network


def silenced(network: DiffRIRS2) -> DiffRIRS2:
    """Let the network change nothing: it returns the painting, enlarged."""
    torch.nn.init.zeros_(network.G.get_parameter("tail.1.weight"))
    torch.nn.init.zeros_(network.G.get_parameter("tail.1.bias"))
    return network
