"""1x1 convolutions by oneDNN, on a CPU, however many rows and threads there are.

With a single thread torch computes those of fewer than 16 rows in a way of its own (ATen's `use_mkldnn`), which adds up
in another order. By oneDNN, as everywhere else, a row has the same bits in a small call as in a large one.
"""

from functools import partial

import torch


def by_onednn(module: torch.nn.Module) -> None:
    """Let a module's 1x1 convolutions be computed by oneDNN, where torch has it."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return
    for part in module.modules():
        if isinstance(part, torch.nn.Conv2d) and part.kernel_size == (1, 1) and part.padding_mode == "zeros":
            part.forward = partial(_convolve, part)  # type: ignore[method-assign]


def _convolve(layer: torch.nn.Conv2d, image: torch.Tensor) -> torch.Tensor:
    assert not isinstance(layer.padding, str), "diffusers gives it in pixels"
    return torch.mkldnn_convolution(
        image, layer.weight, layer.bias, layer.padding, layer.stride, layer.dilation, layer.groups
    )
