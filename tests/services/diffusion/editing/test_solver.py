"""The steps of an edit: which timesteps, and weights that are finite whatever is asked for."""

import math
from typing import Any

import pytest
import torch

from services.diffusion.editing.solver import InvertibleSolver
from shared.contracts.generation import MAX_STEPS, MIN_EDIT_STRENGTH
from training.checkpoints import SCHEDULER


def config(**changes: Any) -> dict[str, Any]:
    """Return SD1.5's scheduler configuration with changes."""
    return {**SCHEDULER, **changes}


def test_the_timesteps_are_those_of_the_original() -> None:
    timesteps = InvertibleSolver(config(), 50, 0.75).timesteps
    assert (timesteps[:4], timesteps[-2:], len(timesteps)) == ([749, 733, 718, 703], [16, 1], 50)


@pytest.mark.parametrize("zero_snr", [False, True])
@pytest.mark.parametrize("strength", [MIN_EDIT_STRENGTH, 0.29, 0.75, 1.0])
@pytest.mark.parametrize("steps", [1, 2, 50, MAX_STEPS])
def test_every_step_goes_down_and_can_be_inverted(steps: int, strength: float, zero_snr: bool) -> None:
    solver = InvertibleSolver(config(rescale_betas_zero_snr=zero_snr), steps, strength)
    assert solver.timesteps[0] == round(1000 * strength) - 1
    assert all(one > other for one, other in zip(solver.timesteps, [*solver.timesteps[1:], 0], strict=True))
    assert [step.timestep for step in solver.transitions] == solver.timesteps
    for step in solver.transitions:
        assert step.std > 0
        assert all(map(math.isfinite, (step.latents, step.denoised, step.slope)))


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_a_true_prediction_points_to_the_clean_latents(prediction_type: str) -> None:
    solver = InvertibleSolver(config(prediction_type=prediction_type), 10, 0.75)
    clean, noise = torch.randn((2, 1, 4, 8, 8), generator=torch.Generator().manual_seed(0)).unbind()
    for timestep in solver.timesteps:
        noised = solver.noised(clean, noise, timestep)
        velocity = (solver.noised(noise, torch.zeros_like(noise), timestep)) - (
            solver.noised(torch.zeros_like(clean), clean, timestep)
        )
        told = noise if prediction_type == "epsilon" else velocity
        assert torch.allclose(solver.denoised(told, noised, timestep), clean, atol=1e-4)
