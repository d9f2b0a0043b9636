"""Latents of all pictures, made once: the autoencoder is frozen, so a run of many passes need not ask it again.

A folder holds `latents-00000.safetensors` and so on, each with the posterior means and deviations of up to a thousand
pictures, float16 (n, 2, 4, h/8, w/8), and `index.json`, which says what they were made from. A folder that is not
complete is completed. Those of a picture that is left out are no numbers.
"""

import hashlib
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from training.data.buckets import Pixels
from training.data.formats import DataError, LeftOut
from training.runs.records import write_json

SHARD = 1_000
_BATCH = 16

_log = logging.getLogger("llmga.training")


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
        DataError: a picture is damaged, or all of a shard are left out.
    """
    identity = {"made_from": made_from, "shard": SHARD}
    index = folder / "index.json"
    if index.is_file() and json.loads(index.read_text(encoding="utf-8")) != identity:
        raise LatentsError(f"{folder} holds latents of something else; delete it or name another folder")
    folder.mkdir(parents=True, exist_ok=True)
    write_json(index, identity)
    shards: list[torch.Tensor] = []
    for start in tqdm(range(0, count, SHARD), desc="latents", unit="shards", disable=None):
        positions = range(start, min(start + SHARD, count))
        path = folder / f"latents-{start // SHARD:05d}.safetensors"
        shard = load_file(path)["latents"] if path.is_file() else None
        if shard is None or len(shard) < len(positions):
            shard = _encode(positions, picture, vae, device, like=shards[-1][0] if shards else None)
            beside = path.with_suffix(".part")
            save_file({"latents": shard}, beside)
            beside.replace(path)
        shards.append(shard[: len(positions)])
    return Latents(torch.cat(shards))


def _encode(
    positions: range, picture: Callable[[int], Pixels], vae: Any, device: torch.device, *, like: torch.Tensor | None
) -> torch.Tensor:
    encoded: dict[int, torch.Tensor] = {}
    for start in range(0, len(positions), _BATCH):
        found: dict[int, Pixels] = {}
        for position in positions[start : start + _BATCH]:
            try:
                found[position] = picture(position)
            except LeftOut as error:
                _log.warning("skipped: %s", error)
        if not found:
            continue
        pixels = np.stack(list(found.values()))
        pictures = torch.from_numpy(pixels).to(device).permute(0, 3, 1, 2).float().div(127.5).sub(1)
        posterior = vae.encode(pictures.contiguous().to(vae.dtype)).latent_dist
        encoded |= zip(found, torch.stack([posterior.mean, posterior.std], dim=1).half().cpu(), strict=True)
    like = next(iter(encoded.values()), like)
    if like is None:
        raise DataError(f"none of {len(positions)} pictures can be used; the warnings above name them")
    left_out = torch.full_like(like, torch.nan)
    return torch.stack([encoded.get(position, left_out) for position in positions])
