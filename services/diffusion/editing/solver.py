"""The solver of an edit: DPM-Solver++, stochastic, of second order, whose noises are given (LLMGA.md §5.4).

Lu et al. 2022, with the formulas over whole timesteps: what inversion and sampling have to share is a mean and a
deviation for each step, and diffusers' scheduler keeps both to itself. The schedule is still that scheduler's. The
original falls back to first order at the end of fewer than 15 steps when it samples, not when it inverts, so that they
no longer fit each other; here both keep the second order.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from services.diffusion.solvers import build_scheduler
from shared.contracts import Scheduler


@dataclass(frozen=True, slots=True)
class Transition:
    """The way from a timestep to the next lower one: weights of what the mean is made of, and the deviation around it.

    slope: of the change of the clean prediction since the step before; 0 where there was none.
    """

    timestep: int
    latents: float
    denoised: float
    slope: float
    std: float

    def mean(self, latents: torch.Tensor, denoised: torch.Tensor, before: torch.Tensor | None) -> torch.Tensor:
        """Return where latents go without noise, by the clean predictions of this step and of the one before."""
        mean = self.latents * latents + self.denoised * denoised
        return mean if before is None else mean + self.slope * (denoised - before)


class InvertibleSolver:
    """The steps of one edit, from `strength` of the schedule down to its start."""

    def __init__(self, config: dict[str, Any], num_inference_steps: int, strength: float) -> None:
        """`config`: a checkpoint's scheduler configuration; its schedule and prediction type are taken."""
        scheduler = build_scheduler(Scheduler.DPMPP_2M_SDE, config)
        self._prediction: str = scheduler.config.prediction_type
        signal = scheduler.alphas_cumprod.double().numpy()
        self._alphas, self._sigmas = np.sqrt(signal), np.sqrt(1 - signal)
        start = round(len(signal) * strength) - 1
        # Cut to whole numbers, as in the original.
        self.timesteps: list[int] = np.linspace(start, 1, num_inference_steps).astype(int).tolist()
        self.transitions = self._transitions()

    def _transitions(self) -> list[Transition]:
        lambdas = np.log(self._alphas) - np.log(self._sigmas)
        found: list[Transition] = []
        length_before = None
        for source, target in zip(self.timesteps, [*self.timesteps[1:], 0], strict=True):
            length = lambdas[target] - lambdas[source]
            decay = -np.expm1(-2 * length)
            denoised = self._alphas[target] * decay
            found.append(
                Transition(
                    timestep=source,
                    latents=float(self._sigmas[target] / self._sigmas[source] * np.exp(-length)),
                    denoised=float(denoised),
                    slope=0.0 if length_before is None else float(0.5 * denoised * length / length_before),
                    std=float(self._sigmas[target] * np.sqrt(decay)),
                )
            )
            length_before = length
        return found

    def noised(self, clean: torch.Tensor, noise: torch.Tensor, timestep: int) -> torch.Tensor:
        """Return clean latents noised to the level of a timestep."""
        return float(self._alphas[timestep]) * clean + float(self._sigmas[timestep]) * noise

    def denoised(self, prediction: torch.Tensor, latents: torch.Tensor, timestep: int) -> torch.Tensor:
        """Return the clean latents that the UNet's prediction points to."""
        alpha, sigma = float(self._alphas[timestep]), float(self._sigmas[timestep])
        if self._prediction == "v_prediction":  # Salimans and Ho 2022, appendix D
            return alpha * latents - sigma * prediction
        return (latents - sigma * prediction) / alpha
