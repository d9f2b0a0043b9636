"""The one door to diffusers and transformers.

Both import torchvision when it is installed. PyPI's torchvision is built for CUDA and cannot be imported
beside a torch without it, because it describes two compiled operators that then do not exist. Declaring their
schemas first is enough, so that is done here, before the libraries load. (vLLM's processes do the same in a
plugin of theirs; the two services never import each other.)

Importing this module takes seconds; nothing on the way to `--help` may do it.
"""

import logging
import warnings
from typing import Any

import torch

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


def _declare() -> Any:
    # torch annotates neither the class nor `define`
    library: Any = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    for schema in _SCHEMAS:
        if not hasattr(torch.ops.torchvision, schema.partition("(")[0]):
            library.define(schema)
    return library


if torch.version.cuda is None:
    _library = _declare()  # the schemas live as long as this object

logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns of kernels that nothing here uses

from diffusers import (  # noqa: E402  the schemas come first
    AutoencoderKL,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    UniPCMultistepScheduler,
)
from diffusers.utils import logging as diffusers_logging  # noqa: E402
from transformers import (  # noqa: E402
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModel,
)
from transformers.utils import logging as transformers_logging  # noqa: E402

__all__ = [
    "AutoencoderKL",
    "CLIPTextConfig",
    "CLIPTextModel",
    "CLIPTextModelWithProjection",
    "CLIPTokenizer",
    "CLIPVisionConfig",
    "CLIPVisionModel",
    "DDIMScheduler",
    "DPMSolverMultistepScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "LCMScheduler",
    "PNDMScheduler",
    "StableDiffusionPipeline",
    "StableDiffusionXLPipeline",
    "UNet2DConditionModel",
    "UniPCMultistepScheduler",
    "quiet",
]


def quiet() -> None:
    """Keep the libraries from drawing progress bars and from warnings that say nothing of use."""
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    # Configuration keys of the checkpoint's own scheduler, unknown to the one that was asked for.
    logging.getLogger("diffusers.configuration_utils").setLevel(logging.ERROR)
    # numpy 2 about torch, in every `set_timesteps` of the Euler family.
    warnings.filterwarnings("ignore", "__array__ implementation doesn't accept a copy", DeprecationWarning)
