"""What a failure on the device means: memory, the device itself, or one request."""

import torch

_ALLOCATION = ("can't allocate memory", "not enough memory", "out of memory")


class DeviceLost(Exception):
    """The device cannot be used any more by this process: CUDA errors are sticky."""


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether less work at once could have passed; torch has no class for it on a CPU."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _ALLOCATION)


def is_device_lost(error: BaseException) -> bool:
    """Return whether every later call would fail as well."""
    return isinstance(error, torch.AcceleratorError) and not is_out_of_memory(error)
