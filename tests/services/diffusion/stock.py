"""What diffusers' own pipelines make of the same request."""

import json
from pathlib import Path
from typing import Any

import diffusers
import torch

from services.diffusion.requests import RenderRequest
from shared.contracts import Scheduler

TOLERANCE = 1e-4

# What each name means, in diffusers' words.
STOCK: dict[Scheduler, tuple[str, dict[str, Any]]] = {
    Scheduler.DDIM: ("DDIMScheduler", {}),
    Scheduler.PNDM: ("PNDMScheduler", {}),
    Scheduler.EULER: ("EulerDiscreteScheduler", {}),
    Scheduler.EULER_ANCESTRAL: ("EulerAncestralDiscreteScheduler", {}),
    Scheduler.DPMPP_2M: ("DPMSolverMultistepScheduler", {}),
    Scheduler.DPMPP_2M_KARRAS: ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    Scheduler.DPMPP_2M_SDE: ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    Scheduler.UNIPC: ("UniPCMultistepScheduler", {}),
    Scheduler.LCM: ("LCMScheduler", {}),
    Scheduler.HEUN: ("HeunDiscreteScheduler", {}),
}


def reference(stock: Any, kind: Scheduler, output_type: str, **settings: Any) -> Any:
    """Return what the stock pipeline makes."""
    name, options = STOCK[kind]
    config = json.loads((Path(stock.config._name_or_path) / "scheduler" / "scheduler_config.json").read_text())
    stock.scheduler = getattr(diffusers, name).from_config(config, **options)
    seed = settings.pop("seed")
    images = stock(**settings, generator=torch.Generator().manual_seed(seed), output_type=output_type).images
    return images[0]


def distance(request: RenderRequest, latents: torch.Tensor) -> float:
    """Return the largest difference to the request's final latents."""
    return float((request.latents[0] - latents).abs().max())
