"""What happens to a picture before and behind its steps.

Text encoding and decoding of latents need the device, so they run on its thread, between steps and for a
bounded share of its time. Compressing and storing need none of it and run in worker threads.
"""

import time
from collections.abc import Callable, Mapping
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch

from services.diffusion.faults import is_out_of_memory
from services.diffusion.loading import LoadedModel
from services.diffusion.phases import Embeddings, Request
from services.diffusion.pictures import LATENT_PX
from shared import metrics
from shared.contracts import OutputFormat
from shared.media import encode_image

Pixels = npt.NDArray[np.uint8]
_MIN_TILE_LATENTS = 8


T = TypeVar("T")


class NotFinite(ArithmeticError):
    """A result holds NaN or infinity."""


def encode_prompts(request: Request, model: LoadedModel) -> None:
    """Give a request its embeddings."""
    prompts = request.picture.prompts
    clip_skip, adapters = request.picture.clip_skip, request.picture.adapters
    model.adapters.use(adapters)
    prompt = model.encoder.encode(prompts.prompt, clip_skip, adapters)
    negative, source = (
        None if tokenized is None else model.encoder.encode(tokenized, clip_skip, adapters)
        for tokenized in (prompts.negative, prompts.source)
    )
    request.condition(Embeddings(prompt, prompt.zeros() if prompts.zero_negative else negative, source))


def decode_latents(latents: torch.Tensor, model: LoadedModel) -> Pixels:
    """Return the picture (height, width, 3) of latents (1, 4, h/8, w/8).

    When memory does not suffice it is decoded in tiles, which may leave faint seams.

    Raises:
        NotFinite: the latents or the picture hold NaN or infinity.
    """
    started = time.perf_counter()
    scaled = (latents / model.vae.config.scaling_factor).to(model.vae.dtype)
    image = whole_or_in_tiles(model, max(scaled.shape[2:]), lambda: model.vae.decode(scaled, return_dict=False)[0])
    image = image.float()
    if not bool(torch.isfinite(image).all()):
        raise NotFinite("the decoded picture")
    # As diffusers' VaeImageProcessor: to [0, 1], then rounded.
    unit = (image * 0.5 + 0.5).clamp(0, 1)[0].permute(1, 2, 0).cpu().numpy()
    pixels: Pixels = (unit * 255).round().astype(np.uint8)
    metrics.VAE_SECONDS.observe(time.perf_counter() - started)
    return pixels


def whole_or_in_tiles(model: LoadedModel, side: int, work: Callable[[], T]) -> T:
    """Return what the autoencoder's work gives; where memory does not suffice, again in tiles.

    side: the picture's longer one in latents; a tile is half as long.
    """
    try:
        return work()
    except Exception as error:
        if not is_out_of_memory(error):
            raise
    # Behind the handler, which keeps the failed attempt's tensors alive.
    release_memory(model.device)
    vae, tile = model.vae, max(_MIN_TILE_LATENTS, side // 2)
    before = (vae.tile_latent_min_size, vae.tile_sample_min_size)
    vae.tile_latent_min_size, vae.tile_sample_min_size = tile, LATENT_PX * tile
    vae.enable_tiling()
    try:
        return work()
    finally:
        vae.disable_tiling()
        vae.tile_latent_min_size, vae.tile_sample_min_size = before


def release_memory(device: torch.device) -> None:
    """Give cached memory back to the device."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


def encode_file(
    pixels: Pixels,
    output_format: OutputFormat,
    text: Mapping[str, str],
    *,
    quality_percent: int | None = None,
    xmp: str | None = None,
) -> bytes:
    """Compress a picture; call it from a worker thread."""
    with metrics.ENCODE_SECONDS.time():
        return encode_image(pixels, output_format, text, quality_percent=quality_percent, xmp=xmp)
