"""What diffusers' own pipelines make of the same request."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch

from services.diffusion.engine import Engine
from services.diffusion.loading import LoadedModel
from services.diffusion.requests import RenderRequest
from shared.contracts import Scheduler
from tests.services.diffusion.pictures import render, request_for, result

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


def guidance_of(kind: Scheduler) -> float:
    """Return a guidance scale that random weights bear: far above, they blow rounding errors up."""
    return 1.5 if kind is Scheduler.LCM else 5.0


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


async def check_alone_and_among_strangers(
    engine: Engine, wanted: Callable[[], RenderRequest], expected: torch.Tensor, models: Sequence[LoadedModel]
) -> None:
    """Check a picture's latents against the stock pipeline's: alone, and among seven strangers of these models."""
    alone = wanted()
    await render(engine, alone)
    assert distance(alone, expected) <= TOLERANCE, distance(alone, expected)
    strangers = [
        request_for(
            models[index % len(models)],
            f"a stranger {index}",
            seed=index,
            steps=3 + 2 * index,
            guidance=1.0 if index % 3 == 0 else 7.5,
            scheduler=other,
        )
        for index, other in enumerate(list(Scheduler)[:7])
    ]
    handles = [engine.submit(stranger) for stranger in strangers]
    among = wanted()
    await render(engine, among)
    for handle in handles:
        assert await result(handle) is not None
    assert distance(among, expected) <= TOLERANCE
    assert torch.equal(alone.latents, among.latents)
