"""Requests for the tests, and what comes of them."""

import asyncio
import random
from collections.abc import Sequence
from typing import Any

from services.diffusion.conditioning.prompts import tokenize
from services.diffusion.engine import Engine
from services.diffusion.handles import Finished, Handle
from services.diffusion.loading import LoadedModel
from services.diffusion.pictures import Picture
from services.diffusion.requests import RenderRequest, is_guided, prepare
from services.diffusion.stages import Pixels, encode_file
from shared.contracts import Lane, OutputFormat, Scheduler
from shared.contracts.generation import PromptEncoding

LCM_STEPS = 50  # the most that it makes
PROMPTS = (
    "a red circle in the middle",
    "a snowman at night, with a black hat",
    "画一个雪人",
    "a boat in the rain " * 9,
    "",
)


def request_for(
    model: LoadedModel,
    prompt: str = "a red circle",
    negative: str = "",
    *,
    encoding: PromptEncoding = PromptEncoding.STOCK,
    size: tuple[int, int] = (128, 128),
    seed: int = 0,
    steps: int = 4,
    guidance: float = 7.5,
    scheduler: Scheduler = Scheduler.PNDM,
    lane: Lane = Lane.INTERACTIVE,
    deterministic: bool = True,
    **more: Any,
) -> RenderRequest:
    """Return a prepared request."""
    guided = is_guided(guidance, model.guidance_channels)
    picture = Picture(
        model=model.name,
        prompts=tokenize(
            model.vocabulary,
            encoding,
            prompt,
            negative if guided else None,
            second=model.second_vocabulary,
            zero_empty_negative=model.files.zero_empty_negative,
        ),
        width=size[0],
        height=size[1],
        seed=seed,
        num_inference_steps=steps,
        guidance_scale=guidance,
        scheduler=scheduler,
        lane=lane,
        deterministic=deterministic,
        **more,
    )
    return prepare(
        picture,
        scheduler_config=model.files.scheduler,
        guidance_channels=model.guidance_channels,
        device=model.device,
    )


def random_settings(rng: random.Random, *, max_steps: int) -> dict[str, Any]:
    """Return random keyword arguments for `request_for`."""
    settings: dict[str, Any] = {
        "prompt": rng.choice(PROMPTS),
        "negative": rng.choice(PROMPTS),
        "encoding": rng.choice(list(PromptEncoding)),
        "size": rng.choice([(128, 128), (128, 128), (64, 64), (128, 96)]),
        "seed": rng.randrange(1_000_000),
        "steps": rng.randint(1, max_steps),
        "guidance": rng.choice([0.0, 1.0, 3.0, 7.5]),
        "scheduler": rng.choice(list(Scheduler)),
        "lane": rng.choice(list(Lane)),
        "deterministic": rng.random() < 0.8,
    }
    if settings["scheduler"] is Scheduler.LCM:
        settings["steps"] = min(settings["steps"], LCM_STEPS)
    return settings


async def result(handle: Handle) -> Pixels | None:
    """Return the picture, or None when it was canceled."""
    async for event in handle.events():
        if isinstance(event, Finished):
            return event.pixels
    return None


async def results(handles: Sequence[Handle]) -> list[Pixels | BaseException | None]:
    """Return every picture or error."""
    return await asyncio.gather(*map(result, handles), return_exceptions=True)


async def render(engine: Engine, request: RenderRequest) -> Pixels:
    """Render one request; behind it `request.latents` are the final ones."""
    pixels = await result(engine.submit(request))
    assert pixels is not None
    return pixels


def png(pixels: Pixels) -> bytes:
    """Return the picture as a file."""
    return encode_file(pixels, OutputFormat.PNG, {})
