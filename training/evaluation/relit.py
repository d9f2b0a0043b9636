"""Checkpoints that leave seams on purpose: copies whose decoders relight and tint whatever they decode.

    python -m training.evaluation.relit models/llmga-tiny/sd15-inpainting runs/relit

A service paints its holes itself, so degraded ones cannot be sent to it. It paints them degraded where its
autoencoder's last layer has another contrast, brightness and tint, each drawn as `training.data.degradations.Seams`
draws it. What such a service gives for the figure `restoration` was painted, restored and stored as any picture is.
"""

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from services.diffusion.checkpoints import UnfitCheckpoint, inspect
from training.data.degradations import Seams

COUNT = 8
WEIGHTS = Path("vae") / "diffusion_pytorch_model.safetensors"
LAST = "decoder.conv_out"


def relit_copies(checkpoint: Path, folder: Path, count: int, seed: int = 0) -> list[Path]:
    """Write the copies below a folder, as `relit-0` and so on; return them.

    Raises:
        UnfitCheckpoint: this is no checkpoint in diffusers layout.
        FileExistsError: a copy is there already.
    """
    inspect(checkpoint)
    seams = Seams()
    generator = np.random.default_rng(seed)
    copies = []
    for number in range(count):
        copy = folder / f"relit-{number}"
        if copy.exists():
            raise FileExistsError(f"{copy} is there already; give another folder")
        shutil.copytree(checkpoint, copy)
        contrast = generator.uniform(1 - seams.contrast, 1 + seams.contrast)
        brightness = generator.uniform(-seams.brightness, seams.brightness)
        tint = generator.uniform(-seams.tint, seams.tint, size=3)
        relight(copy / WEIGHTS, contrast, [brightness + of_channel for of_channel in tint])
        copies.append(copy)
    return copies


def relight(weights: Path, contrast: float, brightness: Sequence[float]) -> None:
    """Have an autoencoder give x * contrast + brightness for every x in [0, 1], by channel."""
    tensors = load_file(weights)
    weight, bias = tensors[f"{LAST}.weight"], tensors[f"{LAST}.bias"]
    # Its own range is [-1, 1]: y = 2x - 1 becomes contrast * y + contrast + 2 * brightness - 1.
    moved = contrast * bias.double() + contrast + 2 * torch.tensor(brightness, dtype=torch.float64) - 1
    tensors[f"{LAST}.weight"] = (contrast * weight.double()).to(weight.dtype)
    tensors[f"{LAST}.bias"] = moved.to(bias.dtype)
    save_file(tensors, weights, metadata={"format": "pt"})


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m training.evaluation.relit",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("checkpoint", type=Path, help="inpainting checkpoint in diffusers layout")
    parser.add_argument("folder", type=Path, help="folder that gets the copies")
    parser.add_argument("--count", type=int, default=COUNT, help=f"copies (default {COUNT})")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    if given.count < 1:
        parser.error("--count is at least 1")
    try:
        copies = relit_copies(given.checkpoint, given.folder, given.count, given.seed)
    except (UnfitCheckpoint, FileExistsError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    served = ", ".join(f'"{copy.name}": "{copy.resolve()}"' for copy in copies)
    sys.stdout.write(f"LLMGA_DIFFUSION__MODELS='{{{served}}}'\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
