"""The picture that a request starts from, and what the steps keep knowing of it.

Image-to-image starts from a noised picture and forgets it (Meng et al. 2021). Inpainting knows it at every step: a UNet
of nine channels sees the mask and the masked picture beside the noise, one of four gets the known latents, noised to
the step's level, put back behind each call. Both are what diffusers' pipelines of these names do (LLMGA.md §5.3).
"""

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch

from services.diffusion.solvers import Solver

Pixels = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Source:
    """A picture at the size at which it is rendered.

    pixels: uint8 (h, w, 3); mask: (h, w), true where it is painted anew, or may change by an edit; None for
    image-to-image, and for an edit that finds its mask itself; strength: the share of the steps that are made, in
    (0, 1], 1 for an edit. At 1 a masked picture starts from pure noise.
    """

    pixels: Pixels
    mask: Mask | None = None
    strength: float = 1.0

    @cached_property
    def sha256(self) -> str:
        """Digest of all of it."""
        digest = hashlib.sha256(repr((self.pixels.shape, self.mask is None, self.strength)).encode())
        digest.update(self.pixels.tobytes())
        if self.mask is not None:
            digest.update(self.mask.tobytes())
        return digest.hexdigest()


@dataclass(frozen=True, slots=True, eq=False)
class Known:
    """What the steps know of a picture that is painted in part.

    mask: float32 (1, 1, h/8, w/8), 1 where it is painted; latents: float32 (1, 4, h/8, w/8), of the masked picture for
    a UNet that sees them, else of the whole picture, with the noise (of the same shape) that they are noised with.
    """

    mask: torch.Tensor
    latents: torch.Tensor
    noise: torch.Tensor | None = None

    def beside(self, sample: torch.Tensor) -> torch.Tensor:
        """Return what the UNet sees: noise, mask and masked picture, or the noise alone where it takes no more."""
        return sample if self.noise is not None else torch.cat([sample, self.mask, self.latents], dim=1)

    def restored(self, latents: torch.Tensor, solver: Solver, next_call: int) -> torch.Tensor:
        """Return the latents before a call with the known part as it is at that level of noise."""
        if self.noise is None:
            return latents
        known = self.latents
        if next_call < solver.calls:
            known = solver.add_noise(known, self.noise, next_call)
        return (1 - self.mask) * known + self.mask * latents

    def parts(self) -> dict[str, torch.Tensor | None]:
        """Return the tensors by their names."""
        return {"mask": self.mask, "latents": self.latents, "noise": self.noise}
