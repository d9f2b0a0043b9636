"""The checkpoints that rendering is measured with: a tiny one, and one whose UNet is SD1.5's at 26 M parameters.

Both have latents of 16x16 at their own size, so that a UNet call takes tens of milliseconds on two cores. Speed does
not depend on what weights say, so random ones serve where the trained tiny pair is not at hand.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

from services.diffusion.batching import Buckets
from services.diffusion.checkpoints import inspect
from services.diffusion.libraries import UNet2DConditionModel
from services.diffusion.loading import LoadedModel, load
from services.diffusion.pictures import LATENT_CHANNELS, LATENT_PX
from services.diffusion.profile import profile, worthwhile
from shared.settings import DiffusionSettings
from training.minis.diffusion import HIDDEN, SAMPLE_SIZE, build_sd15

TINY = Path(__file__).parents[1] / "models" / "llmga-tiny" / "sd15"
MAX_ROWS: int = DiffusionSettings.model_fields["max_rows"].default
TOKENS = 77
ROWS = (1, *Buckets.up_to(MAX_ROWS).sizes)  # of which calls are timed

_TINY_UNET: dict[str, Any] = {
    "block_out_channels": (64, 96, 96),
    "layers_per_block": 1,
    "norm_num_groups": 16,
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
}
# SD1.5's blocks, layers and heads with 56 channels in place of 320.
_SMALL_UNET: dict[str, Any] = {"block_out_channels": (56, 112, 224, 224), "norm_num_groups": 8, "attention_head_dim": 8}


def tiny(folder: Path) -> LoadedModel:
    """Load the trained tiny checkpoint, or a random one of its shape, written to `folder`."""
    if TINY.is_dir():
        return loaded("tiny", TINY)
    return loaded("tiny (random)", _written(folder, _TINY_UNET))


def small(folder: Path) -> LoadedModel:
    """Load a random checkpoint with a UNet of SD1.5's shape and 26 M parameters, written to `folder`."""
    return loaded("sd15-26m (random)", _written(folder, _SMALL_UNET))


def loaded(name: str, folder: Path) -> LoadedModel:
    """Load a checkpoint as the service does on a CPU."""
    candidates = Buckets.up_to(MAX_ROWS)
    model = load(name, inspect(folder), device=torch.device("cpu"), dtype=torch.float32, buckets=candidates)
    model.buckets = worthwhile(model, profile(model, candidates))
    return model


def _written(folder: Path, unet: dict[str, Any]) -> Path:
    build_sd15(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = UNet2DConditionModel(sample_size=SAMPLE_SIZE, cross_attention_dim=HIDDEN, **unet)
    network.save_pretrained(folder / "unet", safe_serialization=True)
    return folder


@dataclass(frozen=True, slots=True)
class CallTimes:
    """Seconds of one UNet call, by size in pixels (width, height) and rows."""

    seconds: Mapping[tuple[int, int], Mapping[int, float]]

    def call_s(self, size: tuple[int, int], rows: int) -> float:
        """Return the seconds of a call of so many rows."""
        return self.seconds[size][rows]

    def row_s(self, size: tuple[int, int], bucket: int) -> float:
        """Return a row's share of a full call."""
        return self.seconds[size][bucket] / bucket

    def gain(self, size: tuple[int, int], bucket: int) -> float:
        """Return how much less a row costs in a full bucket than in one guided request's call of two."""
        return self.row_s(size, 2) / self.row_s(size, bucket)


def time_calls(model: LoadedModel, sizes: Sequence[tuple[int, int]], *, seconds: float) -> CallTimes:
    """Time the UNet alone, all sizes and rows in turn until the seconds are over; medians."""
    seen: dict[tuple[int, int], dict[int, list[float]]] = {size: {rows: [] for rows in ROWS} for size in sizes}
    inputs = {
        (size, rows): (
            torch.randn(rows, LATENT_CHANNELS, size[1] // LATENT_PX, size[0] // LATENT_PX),
            torch.full((rows,), 500.0),
            torch.randn(rows, TOKENS, int(model.files.unet["cross_attention_dim"])),
        )
        for size in sizes
        for rows in ROWS
    }
    end, is_warm = time.perf_counter() + seconds, False
    with torch.inference_mode():
        while not is_warm or time.perf_counter() < end or not seen[sizes[0]][ROWS[0]]:
            for (size, rows), (sample, timesteps, embeds) in inputs.items():
                started = time.perf_counter()
                model.unet(sample, timesteps, encoder_hidden_states=embeds, return_dict=False)
                if is_warm:
                    seen[size][rows].append(time.perf_counter() - started)
            is_warm = True
    return CallTimes({size: {rows: median(times) for rows, times in by_rows.items()} for size, by_rows in seen.items()})
