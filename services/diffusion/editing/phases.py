"""The three phases of an edit (LLMGA.md §5.4). All that their calls find is in one place, as a snapshot must hold it.

Of the words for noise here, `noises` are what inversion finds: with these in the place of random ones, the solver walks
back the very way that it came.
"""

from dataclasses import dataclass, field
from typing import Any

import torch

from services.diffusion.editing.solver import InvertibleSolver
from services.diffusion.phases import Condition, Rows

NUM_MAPS = 10
MAPS_PER_CALL = 2  # four rows, the smallest call: a single map would cost as much
# Half of the schedule: of linspace(0, 999, 51), the 26th from the top.
MASK_TIMESTEP = 500
# A latent is painted where the captions differ by so many times the mean difference: the original clips the map at
# three times the mean, scales it to [0, 1], and takes what is above a half.
MASK_FROM = 1.5


@dataclass(slots=True)
class Findings:
    """What the calls of an edit have found so far.

    mask: float32 (1, 1, h/8, w/8), 1 where the picture may change; difference: the same shape, summed over maps;
    noises: (1, 4, h/8, w/8) each, of the steps that sampling has still to make; denoised: the last clean prediction.
    """

    mask: torch.Tensor | None = None
    difference: torch.Tensor | None = None
    noises: list[torch.Tensor] = field(default_factory=list)
    denoised: torch.Tensor | None = None

    def memory(self) -> dict[str, Any]:
        """Return all of it, for a snapshot."""
        return {
            "mask": self.mask,
            "difference": self.difference,
            "noises": list(self.noises),
            "denoised": self.denoised,
        }


@dataclass(slots=True)
class FindMask:
    """DiffEdit's mask: where both captions predict different noise for the same noised picture.

    maps: float32 (`NUM_MAPS`, 4, h/8, w/8), the picture noised to `MASK_TIMESTEP`; condition: rows of the source's
    caption and of the prompt. The original asks for guided predictions, with an unconditional row beside each. It is
    the same row for both captions and falls out of their difference, and the guidance scale falls out of the comparison
    with the mean: twenty rows say what its forty do.
    """

    maps: torch.Tensor
    condition: Condition
    findings: Findings
    maps_done: int = 0

    @property
    def is_done(self) -> bool:
        """Whether no call is left."""
        return self.maps_done == len(self.maps)

    @property
    def row_count(self) -> int:
        """Rows of the next call."""
        return 2 * self._taken

    @property
    def _taken(self) -> int:
        return min(MAPS_PER_CALL, len(self.maps) - self.maps_done)

    def rows(self, latents: torch.Tensor) -> Rows:
        """Return what the UNet is asked at the next call."""
        sample = self.maps[self.maps_done : self.maps_done + self._taken].repeat_interleave(2, dim=0)
        embeds, pooled, time_ids = self.condition.repeated(self._taken)
        return Rows(sample, _timesteps(MASK_TIMESTEP, sample), embeds, None, pooled, time_ids)

    def accept(self, latents: torch.Tensor, noise_pred: torch.Tensor) -> torch.Tensor:
        """Return the latents as they are; behind the last call there is a mask."""
        total = self.findings.difference
        differences = (noise_pred[1::2] - noise_pred[::2]).abs().mean(dim=1, keepdim=True)
        for index in range(self._taken):
            difference = differences[index, None]
            total = difference if total is None else total + difference
        self.findings.difference = total
        self.maps_done += self._taken
        if self.is_done:
            assert total is not None
            self.findings.mask = (total > MASK_FROM * total.mean()).float()
            self.findings.difference = None
        return latents


@dataclass(slots=True)
class Invert:
    """Edit-friendly DDPM inversion (Huberman-Spiegelglas et al. 2023, Alg. 1): the noise of each step on a noised way.

    way: float32 (steps, 4, h/8, w/8), the picture at each timestep, with noise of its own at each; clean: (1, 4, h/8,
    w/8), where the way ends; condition: the unconditional row, and that of the source's caption.
    """

    solver: InvertibleSolver
    way: torch.Tensor
    clean: torch.Tensor
    condition: Condition
    guidance_scale: float
    findings: Findings
    calls_done: int = 0

    @property
    def is_done(self) -> bool:
        """Whether no call is left."""
        return self.calls_done == len(self.way)

    @property
    def row_count(self) -> int:
        """Rows of the next call."""
        return 2

    def rows(self, latents: torch.Tensor) -> Rows:
        """Return what the UNet is asked at the next call."""
        return _pair(latents, self.solver.timesteps[self.calls_done], self.condition)

    def accept(self, latents: torch.Tensor, noise_pred: torch.Tensor) -> torch.Tensor:
        """Return the latents at the next timestep; behind the last call, those at the first, where sampling starts."""
        step = self.solver.transitions[self.calls_done]
        unconditional, conditional = noise_pred.chunk(2)
        noise_pred = unconditional + self.guidance_scale * (conditional - unconditional)
        denoised = self.solver.denoised(noise_pred, latents, step.timestep)
        mean = step.mean(latents, denoised, self.findings.denoised)
        self.calls_done += 1
        target = self.clean if self.is_done else self.way[self.calls_done, None]
        noise = (target - mean) / step.std
        self.findings.noises.append(noise)
        self.findings.denoised = None if self.is_done else denoised
        # What sampling is going to have there, to the last bit: no rounding adds up along the way.
        return self.way[:1] if self.is_done else mean + step.std * noise


@dataclass(slots=True)
class Resample:
    """Sampling with the noises that were found, guided by the prompt within the mask.

    condition: the unconditional row, and that of the prompt; way, clean: as inversion had them, if what is outside of
    the mask is to go back the way that it came. Without them it is sampled unguided, as in the original: its noises do
    not fit that, and it drifts away from the picture.
    """

    solver: InvertibleSolver
    condition: Condition
    guidance_scale: float
    findings: Findings
    calls_done: int = 0
    way: torch.Tensor | None = None
    clean: torch.Tensor | None = None
    calls_shown: frozenset[int] = frozenset()
    denoised: torch.Tensor | None = None  # of the last call, if it is one of those

    @property
    def is_done(self) -> bool:
        """Whether no call is left."""
        return self.calls_done == len(self.solver.timesteps)

    @property
    def row_count(self) -> int:
        """Rows of the next call."""
        return 2

    def rows(self, latents: torch.Tensor) -> Rows:
        """Return what the UNet is asked at the next call."""
        return _pair(latents, self.solver.timesteps[self.calls_done], self.condition)

    def accept(self, latents: torch.Tensor, noise_pred: torch.Tensor) -> torch.Tensor:
        """Return the latents behind this call."""
        step, mask = self.solver.transitions[self.calls_done], self.findings.mask
        assert mask is not None, "given, or found by the first phase"
        unconditional, conditional = noise_pred.chunk(2)
        noise_pred = unconditional + mask * self.guidance_scale * (conditional - unconditional)
        denoised = self.solver.denoised(noise_pred, latents, step.timestep)
        mean = step.mean(latents, denoised, self.findings.denoised)
        self.findings.denoised = denoised
        self.calls_done += 1
        if self.calls_done in self.calls_shown:
            self.denoised = denoised
        latents = mean + step.std * self.findings.noises.pop(0)
        if self.way is None:
            return latents
        known = self.clean if self.is_done else self.way[self.calls_done, None]
        assert known is not None
        return torch.where(mask > 0, latents, known)


def _pair(latents: torch.Tensor, timestep: int, condition: Condition) -> Rows:
    sample = latents.expand(2, -1, -1, -1)
    return Rows(sample, _timesteps(timestep, sample), condition.embeds, None, condition.pooled, condition.time_ids)


def _timesteps(timestep: int, sample: torch.Tensor) -> torch.Tensor:
    return torch.full((len(sample),), timestep, device=sample.device)
