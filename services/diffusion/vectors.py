"""Linear layers that are given one vector per row of a UNet call.

Everything else in a UNet works on whole pictures, and its matrices are high however few the rows. The layers of the
time embedding alone see as many vectors as the call has rows, and for a few of them a CPU takes another kernel, with
other last bits: a row's result would depend on the bucket. So they are always given the same number of vectors.
"""

from typing import Any

import torch
import torch.nn.functional as F


class EvenLinear(torch.nn.Linear):
    """A linear layer that computes at least `rows` vectors at a time, (count, features); other inputs as they are."""

    rows: int = 0

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return the outputs of the given vectors."""
        missing = self.rows - len(input) if input.dim() == 2 else 0
        if missing <= 0:
            return super().forward(input)
        return super().forward(F.pad(input, (0, 0, 0, missing)))[:-missing]


def even_out(unet: Any, rows: int) -> None:
    """Let all plain linear layers of a UNet compute at least so many vectors at a time."""
    for module in unet.modules():
        if type(module) is torch.nn.Linear:  # not those with quantized weights, whose kernels are their own
            module.__class__ = EvenLinear
            assert isinstance(module, EvenLinear)
            module.rows = rows
