"""Every scheduler with every number of steps that a request may ask for."""

import pytest
import torch

from services.diffusion.checkpoints import CheckpointFiles
from services.diffusion.solvers import Solver
from shared.contracts import Scheduler
from shared.contracts.generation import MAX_STEPS
from shared.errors import InvalidRequest

CPU = torch.device("cpu")


def solver(files: CheckpointFiles, kind: Scheduler, steps: int, seed: int = 0) -> Solver:
    return Solver(kind, files.scheduler, steps, torch.Generator().manual_seed(seed), CPU)


def walk(one: Solver) -> torch.Tensor:
    """Return what becomes of fixed latents under fixed predictions."""
    latents = torch.full((1, 4, 2, 2), one.init_noise_sigma)
    for call in range(one.calls):
        prediction = one.scale_model_input(latents, call) * 0.1
        latents = one.step(prediction, call, latents)
    return latents


@pytest.mark.parametrize("kind", list(Scheduler))
def test_every_number_of_steps_works_or_is_refused(files: CheckpointFiles, kind: Scheduler) -> None:
    most = 50 if kind is Scheduler.LCM else MAX_STEPS
    for steps in (1, 2, 3, 4, 5, 20, 50, most):
        one = solver(files, kind, steps)
        assert torch.isfinite(walk(one)).all()
        assert one.steps_done(0) == 0
        assert one.steps_done(one.calls) == steps
    if most < MAX_STEPS:
        with pytest.raises(InvalidRequest, match="at most 50 steps"):
            solver(files, kind, most + 1)


@pytest.mark.parametrize("kind", list(Scheduler))
def test_noise_comes_from_the_requests_own_generator(files: CheckpointFiles, kind: Scheduler) -> None:
    torch.manual_seed(1)
    first = walk(solver(files, kind, 5))
    torch.manual_seed(2)
    assert torch.equal(walk(solver(files, kind, 5)), first)
    draws = kind in {Scheduler.EULER_ANCESTRAL, Scheduler.DPMPP_2M_SDE, Scheduler.LCM}
    assert torch.equal(walk(solver(files, kind, 5, seed=9)), first) is not draws
