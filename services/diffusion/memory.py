"""How much memory the weights of loaded checkpoints may take."""

import os
from pathlib import Path

import torch

# The rest is for what pictures take: a bucket of SDXL rows and its decoder want several GiB.
GPU_SHARE = 0.6
CPU_SHARE = 0.5
_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


def weight_budget(memory_gb: float | None, device: torch.device) -> int:
    """Return the bytes for weights: those of the setting, else a share of the device's or the machine's memory."""
    if memory_gb is not None:
        return int(memory_gb * 2**30)
    if device.type == "cuda":
        return int(GPU_SHARE * torch.cuda.get_device_properties(device).total_memory)
    return int(CPU_SHARE * machine_bytes())


def machine_bytes(limit: Path = _CGROUP_LIMIT) -> int:
    """Return the memory that this process may have: the machine's, or its container's limit."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        return min(total, int(limit.read_text()))
    except (OSError, ValueError):  # no container, or "max"
        return total
