"""Which kernels compute attention: PyTorch's own (SDPA), or those of xformers where they load."""

from typing import Any, Literal

import torch

from shared.settings import SettingsError

Attention = Literal["sdpa", "xformers"]


def choose_attention(
    wanted: Literal["auto", "sdpa", "xformers"], device: torch.device, dtype: torch.dtype
) -> Attention:
    """Return the kernels of a setting; `auto` is xformers where its kernels load, else SDPA.

    Raises:
        SettingsError: xformers was asked for, and its kernels do not load.
    """
    if wanted == "sdpa":
        return "sdpa"
    if xformers_works_on(device, dtype):
        return "xformers"
    if wanted == "xformers":
        raise SettingsError(
            [
                f"LLMGA_DIFFUSION__ATTENTION: the kernels of xformers do not load on {device}; "
                f"install an xformers that was built for torch {torch.__version__} and this GPU, or use auto or sdpa"
            ]
        )
    return "sdpa"


def xformers_works_on(device: torch.device, dtype: torch.dtype) -> bool:
    """Return whether xformers can be imported and has a kernel that runs here."""
    if device.type != "cuda":
        return False
    try:
        from xformers.ops import memory_efficient_attention

        probe = torch.ones((1, 8, 1, 64), device=device, dtype=dtype)
        return bool(torch.isfinite(memory_efficient_attention(probe, probe, probe)).all())
    except Exception:  # not installed, built for another torch, or without kernels for this GPU
        return False


def use_xformers(module: Any) -> None:
    """Let a module of diffusers compute its attention by xformers; SDPA is what it does by itself."""
    module.enable_xformers_memory_efficient_attention()
