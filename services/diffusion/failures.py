"""What a follower is told when work on the device thread fails."""

import torch

from services.diffusion.faults import DeviceLost, is_device_lost, is_out_of_memory
from services.diffusion.stages import NotFinite, release_memory
from shared.errors import LLMGAError, OutOfMemory, RenderFailed

_NOT_FINITE_STEP = "Use another seed, a lower `guidance_scale` or smaller prompt weights."


def outcome_of(error: Exception, device: torch.device) -> LLMGAError:
    """Return the problem of one request; what a failed allocation has cached is given back.

    Raises:
        DeviceLost: the device cannot be used any more.
    """
    if is_device_lost(error):
        raise DeviceLost from error
    if isinstance(error, LLMGAError):
        return error
    if is_out_of_memory(error):
        release_memory(device)
        return OutOfMemory("The picture does not fit the memory of the renderer.")
    if isinstance(error, NotFinite):
        return RenderFailed("The model's result is not a number.", next_step=_NOT_FINITE_STEP)
    return RenderFailed("The model failed on this picture.")
