"""Pictures into latents: what happens once to a request that starts from one, between steps, on the device's thread.

All randomness is the request's own. Where diffusers has a pipeline for the task it is drawn in that pipeline's order:
the sample of the whole picture, the noise, the sample of the masked picture. Where a pipeline draws what it then has no
use for, so is it here, since the steps may draw from the same generator.
"""

import torch

from services.diffusion.editing.phases import MASK_TIMESTEP, NUM_MAPS
from services.diffusion.editing.request import Beginning, EditRequest
from services.diffusion.loading import LoadedModel
from services.diffusion.phases import Request
from services.diffusion.pictures import LATENT_PX
from services.diffusion.requests import RenderRequest
from services.diffusion.sources import Known, Source
from services.diffusion.stages import NotFinite, whole_or_in_tiles


def encode_source(request: Request, model: LoadedModel) -> None:
    """Give a request its first latents, and what it is to know of its picture.

    Raises:
        NotFinite: the latents hold NaN or infinity.
    """
    source = request.picture.source
    assert source is not None, "only requests with a picture want one encoded"
    if isinstance(request, EditRequest):
        _encode_edited(request, source, model)
    elif isinstance(request, RenderRequest):
        _encode_started(request, source, model)


def _encode_edited(request: EditRequest, source: Source, model: LoadedModel) -> None:
    """Give an edit its latents and noises.

    Drawn are samples of the picture for its mask, their noises, and those of inversion, last first (LLMGA.md §5.4).
    """
    shape, device = request.latents.shape[1:], request.latents.device
    scale = float(model.vae.config.scaling_factor)
    mean, std = _moments(_image(source, device), model)
    generator = torch.Generator("cpu").manual_seed(request.picture.seed)

    def drawn(count: int) -> torch.Tensor:
        return torch.randn((count, *shape), generator=generator).to(device)

    maps = mask = None
    if source.mask is None:
        sampled = (mean + std * drawn(NUM_MAPS)) * scale
        maps = request.solver.noised(sampled, drawn(NUM_MAPS), MASK_TIMESTEP)
    else:
        mask = torch.nn.functional.interpolate(_mask(source, device), size=shape[1:])
    clean = mean * scale
    timesteps = request.solver.timesteps
    noises = drawn(len(timesteps)).flip(0)
    way = torch.stack([request.solver.noised(clean[0], noise, t) for noise, t in zip(noises, timesteps, strict=True)])
    request.start(Beginning(clean, way, maps, mask))


def _encode_started(request: RenderRequest, source: Source, model: LoadedModel) -> None:
    shape, device = request.latents.shape, request.latents.device

    def drawn() -> torch.Tensor:
        return torch.randn(shape, generator=request.generator).to(device)

    def sampled(image: torch.Tensor) -> torch.Tensor:
        mean, std = _moments(image, model)
        return (mean + std * drawn()) * float(model.vae.config.scaling_factor)

    image = _image(source, device)
    is_seen = model.unet_channels > shape[1]  # by the UNet, so that the known latents need not be put back
    starts_from_noise = source.mask is not None and source.strength == 1
    latents = None if starts_from_noise and is_seen else sampled(image)
    noise = drawn()
    known = None
    if source.mask is not None:
        mask = _mask(source, device)
        of_latents = torch.nn.functional.interpolate(mask, size=shape[2:])
        if is_seen:
            known = Known(of_latents, sampled(image * (mask < 0.5)))
        else:
            drawn()
            assert latents is not None
            known = Known(of_latents, latents, noise)
    if starts_from_noise:
        request.start(noise * request.solver.init_noise_sigma, known)
    else:
        assert latents is not None
        request.start(request.solver.add_noise(latents, noise, 0), known)


def _image(source: Source, device: torch.device) -> torch.Tensor:
    """Return the pixels as float32 (1, 3, h, w) in [-1, 1], as diffusers' VaeImageProcessor does."""
    unit = torch.tensor(source.pixels, device=device).permute(2, 0, 1)[None].float() / 255
    return 2 * unit - 1


def _mask(source: Source, device: torch.device) -> torch.Tensor:
    return torch.tensor(source.mask, device=device)[None, None].float()


def _moments(image: torch.Tensor, model: LoadedModel) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and deviation of a picture's latents, float32 (1, 4, h/8, w/8), unscaled."""
    pixels = image.to(model.vae.dtype)
    side = max(image.shape[2:]) // LATENT_PX
    distribution = whole_or_in_tiles(model, side, lambda: model.vae.encode(pixels, return_dict=False)[0])
    mean, std = distribution.mean.float(), distribution.std.float()
    if not bool(torch.isfinite(mean).all() & torch.isfinite(std).all()):
        raise NotFinite("the picture's latents")
    return mean, std
