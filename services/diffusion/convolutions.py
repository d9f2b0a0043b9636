"""1x1 convolutions by oneDNN, on a CPU, however many rows and threads there are.

With a single thread torch computes those of fewer than 16 rows in a way of its own (ATen's `use_mkldnn`), which adds up
in another order. By oneDNN, as everywhere else, a row has the same bits in a small call as in a large one.
"""

import torch


class _ByOneDnn(torch.nn.Conv2d):
    def forward(self, image: torch.Tensor) -> torch.Tensor:
        assert not isinstance(self.padding, str), "diffusers gives it in pixels"
        return torch.mkldnn_convolution(
            image, self.weight, self.bias, self.padding, self.stride, self.dilation, self.groups
        )


def by_onednn(module: torch.nn.Module) -> None:
    """Let a module's 1x1 convolutions be computed by oneDNN, where torch has it."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return
    for part in module.modules():
        if type(part) is torch.nn.Conv2d and part.kernel_size == (1, 1) and part.padding_mode == "zeros":
            part.__class__ = _ByOneDnn  # its weights stay; a function of its own would keep the layer from being freed
