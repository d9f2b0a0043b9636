"""Edits for the engine, and the calls that they make alone."""

from dataclasses import replace
from typing import Any

import torch

from services.diffusion.conditioning.encoder import Embedding
from services.diffusion.conditioning.prompts import tokenize
from services.diffusion.editing.request import EditRequest, prepare_edit
from services.diffusion.loading import LoadedModel
from services.diffusion.pictures import Edit, Picture
from services.diffusion.sources import Mask, Source
from shared.contracts import Lane, Scheduler
from shared.contracts.generation import PromptEncoding
from tests.services.diffusion.calls import call
from tests.services.diffusion.sources import picture

SIZE = (64, 64)
SOURCE, TARGET = "a red circle", "a blue square at night"


class Onesided:
    """A UNet that says more the further to the right."""

    def __init__(self, unet: Any) -> None:
        self._unet = unet

    def __call__(self, sample: torch.Tensor, timesteps: torch.Tensor, **options: Any) -> tuple[torch.Tensor]:
        return (self._unet(sample, timesteps, **options)[0] * torch.linspace(0, 1, sample.shape[-1]),)


def onesided(model: LoadedModel) -> LoadedModel:
    """Return a model that finds masks: by random weights alone words change the same everywhere."""
    return replace(model, unet=Onesided(model.unet))


def edit_request(
    model: LoadedModel,
    target: str = TARGET,
    source: str = SOURCE,
    *,
    encoding: PromptEncoding = PromptEncoding.LLMGA,
    size: tuple[int, int] = SIZE,
    seed: int = 3,
    steps: int = 5,
    guidance: float = 5.0,
    source_guidance: float = 3.5,
    strength: float = 0.75,
    mask: Mask | None = None,
    keeps_unmasked: bool = True,
    **more: Any,
) -> EditRequest:
    """Return a prepared edit of a picture of soft blotches."""
    settings: dict[str, Any] = {"lane": Lane.INTERACTIVE, "deterministic": True} | more
    wanted = Picture(
        model=model.name,
        prompts=tokenize(
            model.vocabulary,
            encoding,
            target,
            "",
            second=model.second_vocabulary,
            zero_empty_negative=model.files.zero_empty_negative,
            source=source,
        ),
        width=size[0],
        height=size[1],
        seed=seed,
        num_inference_steps=steps,
        guidance_scale=guidance,
        scheduler=Scheduler.DPMPP_2M_SDE,
        source=Source(picture(*size), mask),
        edit=Edit(strength, source_guidance, keeps_unmasked),
        **settings,
    )
    return prepare_edit(wanted, scheduler_config=model.files.scheduler, device=model.device)


def texts(model: LoadedModel, request: EditRequest) -> dict[str, Embedding]:
    """Return the embeddings of a request by what they are to the reference."""
    prompts = request.picture.prompts
    assert prompts.source is not None
    target = model.encoder.encode(prompts.prompt)
    nothing = target.zeros() if prompts.negative is None else model.encoder.encode(prompts.negative)
    return {"nothing": nothing, "source": model.encoder.encode(prompts.source), "target": target}


def finished(request: EditRequest, model: LoadedModel) -> EditRequest:
    """Return the request when all its calls are made."""
    with torch.inference_mode():
        while request.calls_done < request.calls:
            call(request, model)
    return request
