"""The one door to diffusers and transformers.

Both import torchvision when it is installed. PyPI's torchvision is built for CUDA and cannot be imported
beside a torch without it, because it describes two compiled operators that then do not exist. Declaring their
schemas first is enough, so that is done here, before the libraries load. (vLLM's processes do the same in a
plugin of theirs; the two services never import each other.)

Importing this module takes seconds; nothing on the way to `--help` may do it.
"""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
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
    AutoencoderTiny,
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
from diffusers.loaders import StableDiffusionLoraLoaderMixin as StableDiffusionLoraLoader  # noqa: E402
from diffusers.loaders import StableDiffusionXLLoraLoaderMixin as StableDiffusionXLLoraLoader  # noqa: E402
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
    "AutoencoderTiny",
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
    "StableDiffusionLoraLoader",
    "StableDiffusionPipeline",
    "StableDiffusionXLLoraLoader",
    "StableDiffusionXLPipeline",
    "UNet2DConditionModel",
    "UniPCMultistepScheduler",
    "adapted_layers",
    "expected_to_fail",
    "quiet",
]


@contextmanager
def expected_to_fail() -> Iterator[None]:
    """Keep the libraries from logging that something could not be loaded, where that is an answer."""
    loggers = [logging.getLogger("diffusers.loaders"), logging.getLogger("transformers")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def adapted_layers(module: Any) -> list[Any]:
    """Return the layers of a module that have adapters beside their weights."""
    from peft.tuners.tuners_utils import BaseTunerLayer  # loaded only where there are adapters

    return [layer for layer in module.modules() if isinstance(layer, BaseTunerLayer)]


def quiet() -> None:
    """Keep the libraries from drawing progress bars and from warnings that say nothing of use."""
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    # Configuration keys of the checkpoint's own scheduler, unknown to the one that was asked for.
    logging.getLogger("diffusers.configuration_utils").setLevel(logging.ERROR)
    # peft of every adapter after the first.
    warnings.filterwarnings("ignore", "Already found a `peft_config` attribute", UserWarning)
    # numpy 2 about torch, in every `set_timesteps` of the Euler family.
    warnings.filterwarnings("ignore", "__array__ implementation doesn't accept a copy", DeprecationWarning)
