"""A check that dry runs make: a run that goes on from its last checkpoint but one ends as it did before."""

import shutil
from collections.abc import Callable
from pathlib import Path

import torch

from training.runs import checkpoints
from training.runs.fitting import Fitted


class NotTheSame(Exception):
    """A resumed run ended with other weights."""


def run_twice(run: Callable[[], Fitted], folder: Path) -> Fitted:
    """Run, forget the last checkpoint, and run again, which resumes from the one before it.

    Raises:
        NotTheSame: the weights differ from those of the first time.
    """
    first = _weights(run())
    last = checkpoints.latest(folder)
    assert last is not None
    shutil.rmtree(last)
    if checkpoints.latest(folder) is None:
        raise NotTheSame(f"{folder} has no checkpoint before the last: nothing was resumed")
    resumed = run()
    second = _weights(resumed)
    different = sorted(name for name in first.keys() | second.keys() if not torch.equal(first[name], second[name]))
    if different:
        raise NotTheSame(f"{len(different)} weights differ after resuming, the first of them {different[0]}")
    return resumed


def _weights(fitted: Fitted) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in fitted.model.named_parameters()}
