"""How a worker holds and computes its checkpoints: what the settings ask for, where this machine can do it."""

import logging
from dataclasses import dataclass
from typing import Any, Literal

import torch

from services.diffusion import compilation, quantization
from services.diffusion.attention import Attention, choose_attention
from services.diffusion.offload import Offload
from services.diffusion.quantization import Quantization
from shared.settings import Settings, SettingsError

Dtype = Literal["auto", "bfloat16", "float16", "float32"]

_log = logging.getLogger("llmga.diffusion")


@dataclass(frozen=True, slots=True)
class Execution:
    """The live choices."""

    device: torch.device
    dtype: torch.dtype
    attention: Attention = "sdpa"
    offload: Offload = "none"
    quantization: Quantization = "none"
    compiles: bool = False

    @classmethod
    def of(cls, settings: Settings) -> "Execution":
        """Return what the settings mean on this machine, each tried out.

        Raises:
            SettingsError: this machine cannot do what is asked of it.
        """
        wanted = settings.diffusion
        device = resolve_device(settings.device)
        dtype = resolve_dtype(wanted.dtype, device)
        offload = wanted.offload
        if offload != "none" and device.type == "cpu":
            _log.warning("LLMGA_DIFFUSION__OFFLOAD has no effect on a CPU: everything is in its memory anyway")
            offload = "none"
        if wanted.quantization != "none" and not quantization.works_on(device, wanted.quantization):
            raise SettingsError(
                [
                    f"LLMGA_DIFFUSION__QUANTIZATION: bitsandbytes has no working kernels for {device}; "
                    "install one that was built for it, or use none"
                ]
            )
        if wanted.compile == "on" and not compilation.works_on(device):
            raise SettingsError(
                [
                    f"LLMGA_DIFFUSION__COMPILE: torch.compile does not work on {device}; "
                    "install a C++ compiler (and Triton for a GPU), or use off"
                ]
            )
        return cls(
            device=device,
            dtype=dtype,
            attention=choose_attention(wanted.attention, device, dtype),
            offload=offload,
            quantization=wanted.quantization,
            compiles=wanted.compile == "on",
        )

    def describe(self) -> dict[str, Any]:
        """Return the choices as JSON, for people."""
        return {
            "device": str(self.device),
            "dtype": str(self.dtype).removeprefix("torch."),
            "attention": self.attention,
            "offload": self.offload,
            "quantization": self.quantization,
            "compile": "on" if self.compiles else "off",
        }


def resolve_device(name: str) -> torch.device:
    """Return the device of a setting; `auto` is the first CUDA device, or the CPU.

    Raises:
        SettingsError: the device is not there.
    """
    if name == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        found = torch.cuda.device_count()
        raise SettingsError([f"LLMGA_DEVICE: {name} is not there ({found} CUDA devices found); use cpu or auto"])
    return device


def resolve_dtype(name: Dtype, device: torch.device) -> torch.dtype:
    """Return the dtype of a setting; `auto` is float16 on CUDA, as checkpoints are published, else float32.

    Raises:
        SettingsError: the device has no fast arithmetic of that kind.
    """
    if name == "auto":
        return torch.float16 if device.type == "cuda" else torch.float32
    if name == "float16" and device.type == "cpu":
        raise SettingsError(["LLMGA_DIFFUSION__DTYPE: float16 is slow on a CPU; use float32, bfloat16 or auto"])
    dtype: torch.dtype = getattr(torch, name)
    return dtype
