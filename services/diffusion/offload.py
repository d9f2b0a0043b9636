"""Parts of a checkpoint that wait in the machine's memory until they are called, so that a small GPU is enough.

`encoders`: text encoders and autoencoder wait, the UNet stays on the device. `model`: the UNet waits too, while an
encoder or the autoencoder is at work. A part that is called comes to the device, and whatever waits with it leaves
first. Callers know nothing of it: the parts are moved by hooks in front of their calls.
"""

from collections.abc import Iterable
from typing import Any, Literal

import torch
from accelerate.hooks import ModelHook, add_hook_to_module

Offload = Literal["none", "encoders", "model"]

_HOST = torch.device("cpu")


def offload(unet: Any, others: Iterable[Any], kind: Offload, device: torch.device) -> None:
    """Let the parts of a checkpoint take turns on the device, from where they are now."""
    if kind == "none":
        return
    turns = _Turns(device, [part for part in (unet, *others) if part is not None], unet if kind == "encoders" else None)
    for part in turns.parts:
        add_hook_to_module(part, _Arrival(turns), append=True)


class _Turns:
    """The parts of one checkpoint, of which one at a time is on the device, beside the one that stays there."""

    def __init__(self, device: torch.device, parts: list[Any], resident: Any) -> None:
        self.parts = parts
        self._device = device
        self._resident = resident
        self._present: Any = None
        for part in parts:
            part.to(device if part is resident else _HOST)

    def call(self, part: Any) -> None:
        """Bring a part to the device, and send away the one that was there."""
        if part is self._present:
            return
        if self._present is not None:
            self._present.to(_HOST)
        self._present = None
        if part is not self._resident:
            part.to(self._device)
            self._present = part


class _Arrival(ModelHook):  # type: ignore[misc]  # accelerate ships no types
    def __init__(self, turns: _Turns) -> None:
        super().__init__()
        self._turns = turns

    def pre_forward(self, module: Any, *args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Bring the module to the device before its own call."""
        self._turns.call(module)
        return args, kwargs
