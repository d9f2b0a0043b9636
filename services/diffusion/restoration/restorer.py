"""Restoration as the service uses it: a checkpoint folder in, finished pictures out.

The network's output is used where the mask says so and nowhere else: every other pixel is the original's, bit for bit.
The prior is computed once from the whole picture; the U-Net, which needs the memory, runs on overlapping tiles where
a side is longer than `TILE_SIDE_PX`, and not at all on tiles without a painted pixel. A picture depends on its own
seed only, whatever it is batched with, up to the rounding of the batch's arithmetic.
"""

import itertools
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from services.diffusion.checkpoints import file_hash
from services.diffusion.restoration.checkpoints import WEIGHTS, load
from services.diffusion.restoration.config import RGB, RestorationConfig
from services.diffusion.restoration.network import DiffRIRS2, join

Pixels = NDArray[np.uint8]

PAINTED_FROM = 128  # mask values from here on are painted; a mask is binarized at one half, as the inpainting's is
# Sides of finished pictures. Activations of one tile take about 2 GB in float32 (512 channels at half its sides).
TILE_SIDE_PX = 1024
TILE_OVERLAP_PX = 64
MAX_BATCH_PX = TILE_SIDE_PX**2  # finished pixels in one forward pass


@dataclass(frozen=True, slots=True, eq=False)
class Painting:
    """A picture to restore.

    painted: what the diffusion model made, uint8 (h / scale, w / scale, 3).
    mask: uint8 (h, w), from 128 on where it was painted.
    known: the original, uint8 (h, w, 3); its pixels under the mask are not looked at.
    """

    painted: Pixels
    mask: Pixels
    known: Pixels
    seed: int


class Restorer:
    """A restoration network, ready to run."""

    def __init__(
        self,
        network: DiffRIRS2,
        *,
        device: torch.device | None = None,
        dtype: torch.dtype = torch.float32,
        tile_side_px: int = TILE_SIDE_PX,
        sha256: str | None = None,
    ) -> None:
        """Place the network; `dtype` is float32 or bfloat16, of all but the few numbers of the diffusion.

        `sha256`: of the file of its weights.
        """
        if dtype not in (torch.float32, torch.bfloat16):
            raise ValueError(f"restoration runs in float32 or bfloat16, not in {dtype}")
        if tile_side_px < 2 * TILE_OVERLAP_PX:
            raise ValueError(f"tiles need sides of {2 * TILE_OVERLAP_PX} pixels or more")
        self.device = device or torch.device("cpu")
        self.dtype = dtype
        self.sha256 = sha256
        self._tile_side_px = tile_side_px
        self._network = network.to(self.device).eval()
        self._network.G.to(dtype)
        self._network.condition.to(dtype)

    @classmethod
    def load(cls, folder: Path, *, device: torch.device | None = None, dtype: torch.dtype = torch.float32) -> Self:
        """Load a checkpoint folder.

        Raises:
            UnfitCheckpoint: a file is missing, damaged or not of the network that its configuration describes.
        """
        return cls(load(folder), device=device, dtype=dtype, sha256=file_hash(folder / WEIGHTS))

    @property
    def config(self) -> RestorationConfig:
        """Return the network's shape; its `scale` says which sizes belong together."""
        return self._network.config

    def restore_batch(self, paintings: Sequence[Painting]) -> list[Pixels]:
        """Return the finished pictures; those of equal size share forward passes."""
        groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for index, painting in enumerate(paintings):
            self._check(painting)
            groups[painting.mask.shape].append(index)
        finished: dict[int, Pixels] = {}
        for (height, width), indices in groups.items():
            size = max(1, MAX_BATCH_PX // (height * width))
            for start in range(0, len(indices), size):
                batch = indices[start : start + size]
                finished.update(zip(batch, self._restore([paintings[i] for i in batch]), strict=True))
        return [finished[index] for index in range(len(paintings))]

    def _check(self, painting: Painting) -> None:
        height, width = painting.mask.shape
        scale = self.config.scale
        if painting.known.shape != (height, width, RGB):
            raise ValueError(f"known must be ({height}, {width}, {RGB}) like the mask, not {painting.known.shape}")
        if height % scale or width % scale:
            raise ValueError(f"the sides of the finished picture must be multiples of {scale}")
        wanted = (height // scale, width // scale, RGB)
        if painting.painted.shape != wanted:
            raise ValueError(f"painted must be {wanted} at scale {scale}, not {painting.painted.shape}")
        for name in ("painted", "mask", "known"):
            if getattr(painting, name).dtype != np.uint8:
                raise ValueError(f"{name} must be uint8")

    @torch.inference_mode()
    def _restore(self, paintings: Sequence[Painting]) -> list[Pixels]:
        """Restore pictures of one size in one batch."""
        masks = [painting.mask >= PAINTED_FROM for painting in paintings]
        height, width = masks[0].shape
        painted = self._tensor([p.painted for p in paintings], self.config.multiple)
        known = self._tensor(
            [np.where(mask[..., None], 0, p.known) for p, mask in zip(paintings, masks, strict=True)],
            self.config.multiple * self.config.scale,
        )
        joined = join(painted, known, self.config.scale)
        ipr = self._network.draw(joined, self._noise([p.seed for p in paintings]))
        restored = self._tiled(joined, ipr, np.any(masks, axis=0))[..., :height, :width]
        pixels = restored.clamp(0, 1).mul(255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        return [
            np.where(mask[..., None], picture, p.known)
            for picture, mask, p in zip(pixels, masks, paintings, strict=True)
        ]

    def _tensor(self, pictures: Sequence[Pixels], multiple: int) -> Tensor:
        """Return pictures as (b, 3, h, w) in [0, 1], mirrored at right and bottom up to the multiple."""
        stacked = np.stack(pictures)
        _, height, width, _ = stacked.shape
        padding = ((0, 0), (0, -height % multiple), (0, -width % multiple), (0, 0))
        padded = np.pad(stacked, padding, mode="reflect")
        return torch.from_numpy(padded).to(self.device).permute(0, 3, 1, 2).float().div_(255)

    def _noise(self, seeds: Sequence[int]) -> Tensor:
        """Return x_T (b, ipr_channels), each row from its own seed on the CPU, so that devices agree."""
        rows = [torch.randn(self.config.ipr_channels, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        return torch.stack(rows).to(self.device)

    def _tiled(self, joined: Tensor, ipr: Tensor, painted: NDArray[np.bool_]) -> Tensor:
        """Run the U-Net over tiles and blend them linearly across their overlaps; float32 (b, 3, H, W).

        Where no tile of a place has a painted pixel, the result is zero: it is not looked at.
        """
        scale, multiple = self.config.scale, self.config.multiple
        b, _, h, w = joined.shape
        side = max(multiple, self._tile_side_px // scale // multiple * multiple)
        rows, columns = (spans(length, side, TILE_OVERLAP_PX // scale) for length in (h, w))
        total = torch.zeros(b, RGB, h * scale, w * scale, device=self.device)
        weights = torch.zeros(h * scale, w * scale, device=self.device)
        for (top, bottom), (left, right) in itertools.product(rows, columns):
            finished = np.s_[top * scale : bottom * scale, left * scale : right * scale]
            if not painted[finished].any():
                continue
            out = self._network.G(joined[..., top:bottom, left:right], ipr)
            ramps = [
                _ramp(end - start, start > 0, end < length, TILE_OVERLAP_PX // scale, scale)
                for start, end, length in ((top, bottom, h), (left, right, w))
            ]
            weight = (ramps[0][:, None] * ramps[1]).to(self.device)
            total[(..., *finished)] += out * weight
            weights[finished] += weight
        return total / weights.clamp(min=torch.finfo(torch.float32).tiny)


def spans(length: int, side: int, overlap: int) -> list[tuple[int, int]]:
    """Return the starts and ends of tiles that cover the length; the last is moved back to end with it."""
    if length <= side:
        return [(0, length)]
    starts = [*range(0, length - side, side - overlap), length - side]
    return [(start, start + side) for start in starts]


def _ramp(length: int, fades_in: bool, fades_out: bool, overlap: int, scale: int) -> Tensor:
    """Return weights (length * scale,) that rise and fall over the overlap where a tile has neighbors."""
    weight = torch.ones(length * scale)
    slope = torch.arange(1, overlap * scale + 1) / (overlap * scale + 1)
    if fades_in:
        weight[: len(slope)] = slope
    if fades_out:
        weight[-len(slope) :] = torch.minimum(weight[-len(slope) :], slope.flip(0))
    return weight
