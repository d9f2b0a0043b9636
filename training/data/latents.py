"""Latents of all pictures, made once: the autoencoder is frozen, so a run of many passes need not ask it again.

A folder holds `latents-00000.safetensors` and so on, each with the posterior means and deviations of up to a thousand
pictures, float16 (n, 2, 4, h/8, w/8), and `index.json`, which says what they were made from. A folder that is not
complete is completed.
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from training.data.buckets import Pixels
from training.runs.records import write_json

SHARD = 1_000
_BATCH = 16


class LatentsError(Exception):
    """The folder holds latents of something else."""


class Latents:
    """Latents in memory, by the position of their picture."""

    def __init__(self, stored: torch.Tensor) -> None:
        self._stored = stored

    def __len__(self) -> int:
        return len(self._stored)

    def __call__(self, position: int) -> torch.Tensor:
        """Return mean and deviation, float16 (2, 4, h/8, w/8)."""
        return self._stored[position]


def hash_of(vae: Any) -> str:
    """Return a digest of an autoencoder's weights that make latents; its decoder may change.

    They count in half precision, in which checkpoints are stored between two stages.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(vae.state_dict().items()):
        if not name.startswith(("encoder.", "quant_conv.")):
            continue
        digest.update(f"{name} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().half().contiguous().numpy().tobytes())
    return digest.hexdigest()


@torch.no_grad()
def precompute(
    folder: Path, count: int, picture: Callable[[int], Pixels], vae: Any, device: torch.device, made_from: str
) -> Latents:
    """Make what is missing in the folder, and return the first `count`; a folder may grow from run to run.

    made_from: what pictures and autoencoder these are; a folder of another is refused.

    Raises:
        LatentsError: the folder is another's.
    """
    identity = {"made_from": made_from, "shard": SHARD}
    index = folder / "index.json"
    if index.is_file() and json.loads(index.read_text(encoding="utf-8")) != identity:
        raise LatentsError(f"{folder} holds latents of something else; delete it or name another folder")
    folder.mkdir(parents=True, exist_ok=True)
    write_json(index, identity)
    shards = []
    for start in tqdm(range(0, count, SHARD), desc="latents", unit="shards", disable=None):
        positions = range(start, min(start + SHARD, count))
        path = folder / f"latents-{start // SHARD:05d}.safetensors"
        shard = load_file(path)["latents"] if path.is_file() else None
        if shard is None or len(shard) < len(positions):
            shard = _encode(positions, picture, vae, device)
            beside = path.with_suffix(".part")
            save_file({"latents": shard}, beside)
            beside.replace(path)
        shards.append(shard[: len(positions)])
    return Latents(torch.cat(shards))


def _encode(positions: range, picture: Callable[[int], Pixels], vae: Any, device: torch.device) -> torch.Tensor:
    encoded = []
    for start in range(0, len(positions), _BATCH):
        pixels = np.stack([picture(position) for position in positions[start : start + _BATCH]])
        pictures = torch.from_numpy(pixels).to(device).permute(0, 3, 1, 2).float().div(127.5).sub(1)
        posterior = vae.encode(pictures.contiguous().to(vae.dtype)).latent_dist
        encoded.append(torch.stack([posterior.mean, posterior.std], dim=1).half().cpu())
    return torch.cat(encoded)
