"""Weights in fewer bits, by bitsandbytes: the linear layers of UNets and text encoders, also on a CPU.

The layers are exchanged here and not by diffusers, which does it on GPUs only. Convolutions, norms and embeddings stay
as they are.
"""

from typing import Any, Literal

import torch

Quantization = Literal["none", "bitsandbytes-8bit", "bitsandbytes-4bit"]

# Bytes per number: 8 bits with a scale per row; 4 bits with one float32 per block of 64.
BYTES_PER_WEIGHT: dict[Quantization, float] = {"none": 0.0, "bitsandbytes-8bit": 1.0, "bitsandbytes-4bit": 0.5 + 4 / 64}
# LLM.int8 computes outlier columns apart, and one row's outlier would change how all rows are computed: a picture would
# depend on its neighbours (Dettmers et al. 2022, §3.2). Zero turns that off; activations are scaled row by row.
_NO_OUTLIERS = 0.0


def quantize(module: torch.nn.Module, quantization: Quantization, dtype: torch.dtype) -> None:
    """Exchange a module's linear layers for quantised ones; their weights are rounded when they reach a device."""
    if quantization == "none":
        return
    for name, child in module.named_children():
        if isinstance(child, torch.nn.Linear):
            setattr(module, name, _quantized(child, quantization, dtype))
        else:
            quantize(child, quantization, dtype)


def works_on(device: torch.device, quantization: Quantization) -> bool:
    """Return whether bitsandbytes has kernels for this device that can be loaded."""
    try:
        probe = torch.nn.Sequential(torch.nn.Linear(64, 64))
        quantize(probe, quantization, torch.float32)
        with torch.inference_mode():
            answer = probe.to(device)(torch.ones(1, 64, device=device))
        return bool(torch.isfinite(answer).all())
    except Exception:  # whatever a missing or foreign kernel raises
        return False


def _quantized(linear: torch.nn.Linear, quantization: Quantization, dtype: torch.dtype) -> Any:
    import bitsandbytes as bnb  # seconds, for those who ask for it

    has_bias = linear.bias is not None
    layer: Any
    if quantization == "bitsandbytes-8bit":
        layer = bnb.nn.Linear8bitLt(
            linear.in_features, linear.out_features, has_bias, has_fp16_weights=False, threshold=_NO_OUTLIERS
        )
        layer.weight = bnb.nn.Int8Params(linear.weight.data, requires_grad=False, has_fp16_weights=False)
    else:
        layer = bnb.nn.Linear4bit(
            linear.in_features, linear.out_features, has_bias, compute_dtype=dtype, quant_type="nf4"
        )
        layer.weight = bnb.nn.Params4bit(linear.weight.data, requires_grad=False, quant_type="nf4")
        # Where a CPU can, it would repack the weights for kernels of its own: those round to bfloat16, and fail on
        # matrices whose sides are not multiples of 32 and 64.
        layer.support_avx512bf16_for_cpu = False
    layer.bias = linear.bias
    return layer
