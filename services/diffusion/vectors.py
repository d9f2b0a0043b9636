"""Linear layers that are given one vector per row of a UNet call.

Everything else in a UNet works on whole pictures, and its matrices are high however few the rows. The layers of the
time embedding alone see as many vectors as the call has rows, and for a few of them a CPU takes another kernel, with
other last bits: a row's result would depend on the bucket. So they are always given the same number of vectors.
"""

from typing import Any

import torch
import torch.nn.functional as F

# Whatever the largest bucket of a worker is: the bits of a picture must not depend on a setting.
VECTORS = 64
_kinds: dict[type[torch.nn.Linear], type[torch.nn.Linear]] = {}


class _Even:
    """Makes a linear layer compute at least `VECTORS` vectors, (count, features), at a time."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the layer's outputs; other inputs than vectors go through as they are."""
        forward = super().forward  # type: ignore[misc]  # of the layer that this is mixed into
        missing = VECTORS - len(x) if x.dim() == 2 else 0
        if missing <= 0:
            return forward(x)  # type: ignore[no-any-return]
        return forward(F.pad(x, (0, 0, 0, missing)))[:-missing]  # type: ignore[no-any-return]


def _even(kind: type[torch.nn.Linear]) -> type[torch.nn.Linear]:
    if kind not in _kinds:
        _kinds[kind] = type(f"Even{kind.__name__}", (_Even, kind), {})
    return _kinds[kind]


def even_out(unet: Any) -> None:
    """Let all linear layers of a UNet, also those with quantized weights, compute many vectors at a time."""
    for module in unet.modules():
        if isinstance(module, torch.nn.Linear) and not isinstance(module, _Even):
            module.__class__ = _even(type(module))
