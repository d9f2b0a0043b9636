"""UNets and decoders that do what the real one does, and let a test look at it, hold it or break it; and wider ones."""

import hashlib
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from services.diffusion.libraries import UNet2DConditionModel
from services.diffusion.loading import LoadedModel

WAIT_S = 60.0


class Held:
    """A UNet that makes each call only when the test allows it, and tells how many rows the call had."""

    def __init__(self, unet: Any) -> None:
        self._unet = unet
        self._allowed = threading.Semaphore(0)
        self._entered = threading.Semaphore(0)
        self.calls: list[torch.Tensor] = []  # the timesteps of each call's rows

    def __call__(self, sample: torch.Tensor, timesteps: torch.Tensor, **options: Any) -> Any:
        self.calls.append(timesteps)
        self._entered.release()
        assert self._allowed.acquire(timeout=WAIT_S)
        return self._unet(sample, timesteps, **options)

    def wait_for_call(self) -> None:
        """Return when the device thread is inside one more call."""
        assert self._entered.acquire(timeout=WAIT_S)

    def allow(self, calls: int = 1) -> None:
        """Let calls go on."""
        self._allowed.release(calls)


class Watched:
    """A UNet that shows its inputs to the test before each call; what the test raises, it raises."""

    def __init__(self, unet: Any, look: Callable[[torch.Tensor, torch.Tensor], None]) -> None:
        self._unet = unet
        self._look = look

    def __call__(self, sample: torch.Tensor, timesteps: torch.Tensor, **options: Any) -> Any:
        self._look(sample, options["encoder_hidden_states"])
        return self._unet(sample, timesteps, **options)


def seeing_masks(model: LoadedModel) -> LoadedModel:
    """Return the model with a random UNet of nine channels."""
    channels = {"in_channels": 9}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        unet = UNet2DConditionModel.from_config({**model.unet.config, **channels}).eval().requires_grad_(False)
    digest = hashlib.sha256(model.files.sha256.encode()).hexdigest()
    files = replace(model.files, unet={**model.files.unet, **channels}, sha256=digest)
    return replace(model, name=f"{model.name}-inpaint", unet=unet, files=files)


def held(model: LoadedModel) -> tuple[LoadedModel, Held]:
    """Return the model with a held UNet."""
    unet = Held(model.unet)
    return replace(model, unet=unet), unet


def watched(model: LoadedModel, look: Callable[[torch.Tensor, torch.Tensor], None]) -> LoadedModel:
    """Return the model with a watched UNet; `look` gets (sample, encoder_hidden_states)."""
    return replace(model, unet=Watched(model.unet, look))


def refusing(model: LoadedModel, prompt: str) -> LoadedModel:
    """Return the model with a UNet that fails when a row of this prompt is in the call."""
    from tests.services.diffusion.pictures import request_for

    with torch.inference_mode():
        marker = model.encoder.encode(request_for(model, prompt).picture.prompts.prompt).tokens

    def look(_: torch.Tensor, embeds: torch.Tensor) -> None:
        if embeds.shape[1:] == marker.shape and bool((embeds == marker).flatten(1).all(1).any()):
            raise RuntimeError("this prompt breaks the model")

    return watched(model, look)
