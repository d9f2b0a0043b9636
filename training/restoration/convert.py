"""Weights of DiffRIR as they were published, made into a folder that is served.

    python -m training.restoration.convert net_g_latest.pth models/diffrir-x2

The published files are pickles. They are read by torch's restricted unpickler, which knows tensors and containers and
runs nothing else, and never by the service. The scale is read from the weights; the network is the published one.
"""

import argparse
import pickle
import sys
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, device, load

from services.diffusion.checkpoints import UnfitCheckpoint
from services.diffusion.restoration.checkpoints import complete, save
from services.diffusion.restoration.config import RestorationConfig, Scale
from services.diffusion.restoration.network import DiffRIRS2

AVERAGED, LAST = "params_ema", "params"  # the averaged weights are those to use (LLMGA.md §6)
FIRST = "G.patch_embed.proj.weight"
SCALE_OF: dict[int, Scale] = {96: 1, 60: 2, 51: 4}  # by the channels that the first convolution takes
PARALLEL = "module."


def convert(source: Path, folder: Path) -> RestorationConfig:
    """Write the folder and return its configuration.

    Raises:
        UnfitCheckpoint: the file holds anything else than the published S2 network.
    """
    tensors = _tensors(source)
    scale = SCALE_OF.get(tensors[FIRST].shape[1]) if FIRST in tensors and tensors[FIRST].dim() == 4 else None
    if scale is None:
        raise UnfitCheckpoint(f"{source} is not DiffRIR at scale 1, 2 or 4; it has no {FIRST} of theirs")
    config = RestorationConfig(scale=scale)
    with device("meta"):
        network = DiffRIRS2(config)
    network.to_empty(device="cpu")
    network.load_state_dict(complete(network, tensors, source))
    save(network, folder)
    return config


def _tensors(source: Path) -> dict[str, Tensor]:
    try:
        content = load(source, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError):
        raise UnfitCheckpoint(f"{source} cannot be read, or holds more than tensors; get the file again") from None
    if isinstance(content, dict):
        content = content.get(AVERAGED, content.get(LAST, content))
    if not isinstance(content, dict) or not all(isinstance(tensor, Tensor) for tensor in content.values()):
        raise UnfitCheckpoint(f"{source} holds no state dict under {AVERAGED!r}")
    return {str(name).removeprefix(PARALLEL): tensor for name, tensor in content.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m training.restoration.convert",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", type=Path, help="published file, such as net_g_latest.pth")
    parser.add_argument("folder", type=Path, help="folder to write")
    given = parser.parse_args(arguments)
    try:
        config = convert(given.source, given.folder)
    except UnfitCheckpoint as error:
        sys.stderr.write(f"{error}\n")
        return 2
    sys.stdout.write(f"{given.folder}: DiffRIR at scale {config.scale}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
