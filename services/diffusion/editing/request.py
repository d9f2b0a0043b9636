"""One edit under way: its phases, what they found, and how many calls each of them has had.

The noises that an edit starts from are drawn when its picture is encoded, by a generator of their own, and never kept:
a snapshot holds only what calls of the UNet gave, and whoever goes on from one encodes the picture again.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from services.diffusion.editing.phases import MAPS_PER_CALL, NUM_MAPS, Findings, FindMask, Invert, Resample
from services.diffusion.editing.solver import InvertibleSolver
from services.diffusion.phases import Condition, Embeddings
from services.diffusion.pictures import LATENT_CHANNELS, LATENT_PX, Picture
from services.diffusion.previews import calls_shown
from services.diffusion.sources import Pixels
from shared.media import PAINTED


@dataclass(frozen=True, slots=True, eq=False)
class Beginning:
    """The encoded picture of an edit, with its noises.

    clean: float32 (1, 4, h/8, w/8); way: (steps, 4, h/8, w/8), falling in timesteps; maps: (`NUM_MAPS`, 4, h/8, w/8),
    or mask: (1, 1, h/8, w/8), the client's own.
    """

    clean: torch.Tensor
    way: torch.Tensor
    maps: torch.Tensor | None
    mask: torch.Tensor | None


@dataclass(slots=True)
class EditRequest:
    """A picture that is edited (`services.diffusion.phases.Request`)."""

    picture: Picture
    latents: torch.Tensor
    solver: InvertibleSolver
    wants_source: bool = True
    calls_done: int = 0
    findings: Findings = field(default_factory=Findings)
    _beginning: Beginning | None = None
    _phases: list[FindMask | Invert | Resample] = field(default_factory=list)

    @property
    def has_own_mask(self) -> bool:
        """Whether the client says what is to change."""
        return self.picture.source is not None and self.picture.source.mask is not None

    @property
    def _maps(self) -> int:
        return 0 if self.has_own_mask else NUM_MAPS

    @property
    def _steps(self) -> int:
        return len(self.solver.timesteps)

    def _done(self) -> tuple[int, int, int]:
        """Return the calls that each phase has had."""
        for_mask = self._maps // MAPS_PER_CALL
        masked = min(self.calls_done, for_mask)
        inverted = min(self.calls_done - masked, self._steps)
        return masked, inverted, self.calls_done - masked - inverted

    @property
    def wants_prompts(self) -> bool:
        """Whether it cannot go on without its embeddings (`Request`)."""
        return not self._phases and self.calls_done < self.calls

    @property
    def calls(self) -> int:
        """UNet calls of the whole picture."""
        return self._maps // MAPS_PER_CALL + 2 * self._steps

    @property
    def steps_done(self) -> int:
        """Steps done of `total_steps`."""
        masked, inverted, sampled = self._done()
        return masked * MAPS_PER_CALL + inverted + sampled

    @property
    def total_steps(self) -> int:
        """Maps of differences, steps into noise and steps out of it."""
        return self._maps + 2 * self._steps

    def start(self, beginning: Beginning) -> None:
        """Take the encoded picture."""
        self._beginning = beginning
        if self.calls_done == 0:
            self.latents = beginning.way[:1]
            self.findings.mask = beginning.mask
        self.wants_source = False

    def condition(self, embeddings: Embeddings) -> None:
        """Take the embeddings (`Request`)."""
        prompt, negative, source = embeddings
        edit, begun = self.picture.edit, self._beginning
        self._beginning = None  # the phases have what they need of it, each for as long as it lasts
        assert negative is not None
        assert source is not None
        assert edit is not None
        masked, inverted, sampled = self._done()
        if begun is not None:
            if begun.maps is not None:
                both = Condition.of([source, prompt], self.picture)
                self._phases.append(FindMask(begun.maps, both, self.findings, masked * MAPS_PER_CALL))
            before = Condition.of([negative, source], self.picture)
            scale = edit.source_guidance_scale
            self._phases.append(Invert(self.solver, begun.way, begun.clean, before, scale, self.findings, inverted))
        after = Condition.of([negative, prompt], self.picture)
        way = clean = None
        if edit.keeps_unmasked:
            assert begun is not None
            way, clean = begun.way, begun.clean
        shown = calls_shown(self._steps, self.picture.previews)
        guidance = self.picture.guidance_scale
        self._phases.append(Resample(self.solver, after, guidance, self.findings, sampled, way, clean, shown))
        self._phases = [phase for phase in self._phases if not phase.is_done]

    @property
    def phase(self) -> FindMask | Invert | Resample | None:
        """The phase that wants the next UNet call."""
        return self._phases[0] if self._phases else None

    def accept(self, noise_pred: torch.Tensor) -> None:
        """Take the UNet's answer (`Request`)."""
        phase = self._phases[0]
        self.latents = phase.accept(self.latents, noise_pred)
        self.calls_done += 1
        if phase.is_done:
            del self._phases[0]

    def pop_denoised(self) -> torch.Tensor | None:
        """Return the clean latents of the last call if they are to be shown, once."""
        phase = self.phase
        if not isinstance(phase, Resample):
            return None
        denoised, phase.denoised = phase.denoised, None
        return denoised

    def mask_pixels(self) -> Pixels:
        """Return the mask of a picture that has one by now, uint8 (height, width), white where it could change."""
        mask = self.findings.mask
        assert mask is not None, "given, or found by the first phase"
        white = (mask[0, 0] > 0).cpu().numpy()
        return np.kron(white, np.full((LATENT_PX, LATENT_PX), PAINTED, np.uint8))

    def memory(self) -> dict[str, Any]:
        """Return what the calls have found so far."""
        return self.findings.memory()

    def go_on(self, calls_done: int, latents: torch.Tensor, memory: dict[str, Any]) -> None:
        """Take over the state of a request that was made with the same arguments (`Request`)."""
        self.calls_done, self.latents = calls_done, latents
        self.findings = Findings(**memory)
        assert self.picture.edit is not None
        _, inverted, sampled = self._done()
        self.wants_source = sampled < self._steps if self.picture.edit.keeps_unmasked else inverted < self._steps


def prepare_edit(picture: Picture, *, scheduler_config: dict[str, Any], device: torch.device) -> EditRequest:
    """Return the request of an edit, whose picture is not yet encoded."""
    assert picture.edit is not None
    solver = InvertibleSolver(scheduler_config, picture.num_inference_steps, picture.edit.strength)
    shape = (1, LATENT_CHANNELS, picture.height // LATENT_PX, picture.width // LATENT_PX)
    return EditRequest(picture, torch.zeros(shape, device=device), solver)
