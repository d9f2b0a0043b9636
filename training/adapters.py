"""LoRA and QLoRA: low-rank changes beside the linear layers of the language model, merged at export.

The layers go into the model in place (peft), so its names stay and training is the same code. A quantized base is only
read; the export adds the changes to the base's own weights, not to their 4 or 8 bit rounding.
"""

from typing import Any

import torch
from torch import nn

_ADAPTER = "default"


def add_adapters(language_model: Any, *, rank: int, alpha: int, dropout: float) -> None:
    """Put adapters beside every linear layer of the language model but its head."""
    from peft import LoraConfig, inject_adapter_in_model

    head = language_model.get_output_embeddings()
    targets = [
        name.removeprefix("model.")
        for name, module in language_model.named_modules()
        if isinstance(module, nn.Linear) and module is not head
    ]
    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, bias="none", target_modules=sorted(targets))
    inject_adapter_in_model(config, language_model, adapter_name=_ADAPTER)


def is_adapter(name: str) -> bool:
    """Return whether a parameter of this name belongs to an adapter."""
    return ".lora_" in name


def changes(language_model: Any) -> dict[str, torch.Tensor]:
    """Return by its published name what to add to each weight, in float32."""
    from peft.tuners.lora import LoraLayer

    return {
        f"{name}.weight": module.get_delta_weight(_ADAPTER).detach().float().cpu()
        for name, module in language_model.named_modules()
        if isinstance(module, LoraLayer)
    }
