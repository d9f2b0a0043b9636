"""The UNet compiled by torch.compile: one graph per bucket and text length, all made before the first picture.

What is compiled is the model's own size. A call of another shape, or one with adapters, goes to the UNet as it is, so
no request ever waits for a compiler, and a picture's shape alone decides which way it takes: its bytes do not depend on
what came before. Should torch compile again nevertheless, it is counted and logged.
"""

import logging
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch._dynamo import lookup_backend

from shared import metrics

# Dynamo gives up in silence after 8 graphs of one function; a worker has some per checkpoint.
GRAPHS = 256

_log = logging.getLogger("llmga.diffusion")

Shape = tuple[int, int, int, int]  # rows, height and width in latents, tokens


class CompiledUNet:
    """A UNet that answers as the one inside does, from compiled graphs where there is one; for the device thread."""

    def __init__(self, unet: Any, has_adapters: Callable[[], bool], *, backend: str = "inductor") -> None:
        """`has_adapters`: whether the next call is changed by adapters."""
        self.graphs = 0
        self._unet = unet
        self._has_adapters = has_adapters
        self._compile = lookup_backend(backend)
        self._compiled = torch.compile(unet, backend=self._counted, dynamic=False)
        self._shapes: set[Shape] = set()
        self._is_warm = False

    def warm_up(self, shapes: Iterable[Shape], call: Callable[[Shape], object]) -> None:
        """Compile for these shapes, by calls of the UNet that `call` makes; nothing is compiled afterwards."""
        for shape in shapes:
            self._shapes.add(shape)
            call(shape)
        self._is_warm = True
        _log.info("compiled", extra={"graphs": self.graphs})

    def __call__(self, sample: torch.Tensor, timesteps: torch.Tensor, **options: Any) -> Any:
        """Return the UNet's answer."""
        rows, _, height, width = sample.shape
        shape = (rows, height, width, options["encoder_hidden_states"].shape[1])
        is_compiled = shape in self._shapes and not self._has_adapters()
        return (self._compiled if is_compiled else self._unet)(sample, timesteps, **options)

    def _counted(self, graph: Any, inputs: list[Any]) -> Any:
        self.graphs += 1
        if self._is_warm:
            metrics.RECOMPILES.inc()
            _log.error("the UNet is compiled again, while pictures wait")
        return self._compile(graph, inputs)


def allow_graphs() -> None:
    """Let torch keep as many graphs of one function as all checkpoints of a worker may have."""
    torch._dynamo.config.recompile_limit = GRAPHS


def works_on(device: torch.device) -> bool:
    """Return whether torch.compile works here: it wants a C++ compiler, and Triton for a GPU."""
    try:
        doubled = torch.compile(lambda tensor: tensor * 2)(torch.ones(2, device=device))
        return bool((doubled == 2).all())
    except Exception:  # whatever is missing
        return False
