"""An edit step by step as LLMGA.md §5.4 has it: plain loops, one row at a time, nothing of the service's editing."""

import math
from dataclasses import dataclass
from typing import Any

import torch

from services.diffusion.conditioning.encoder import Embedding
from services.diffusion.loading import LoadedModel
from services.diffusion.sources import Pixels


@dataclass
class Edited:
    """What comes of an edit.

    mask: (h/8, w/8) of zeros and ones; start: the picture's latents, to be found again where nothing changes; noises:
    in the order in which sampling uses them; latents: the edited picture's.
    """

    mask: torch.Tensor
    start: torch.Tensor
    noises: list[torch.Tensor]
    latents: torch.Tensor


class Walk:
    """DPM-Solver++ (SDE, second order, midpoint) over whole timesteps, with its history."""

    def __init__(self, alphas_cumprod: torch.Tensor, prediction_type: str) -> None:
        self.alpha = [math.sqrt(float(value)) for value in alphas_cumprod]
        self.sigma = [math.sqrt(1 - float(value)) for value in alphas_cumprod]
        self.prediction_type = prediction_type
        self.forget()

    def forget(self) -> None:
        """Start without history."""
        self.clean_before: torch.Tensor | None = None
        self.length_before = 0.0

    def towards(self, x: torch.Tensor, output: torch.Tensor, s: int, t: int) -> tuple[torch.Tensor, float]:
        """Return mean and deviation of the latents at t, from those at s and the UNet's output for them."""
        alpha, sigma = self.alpha, self.sigma
        clean = (x - sigma[s] * output) / alpha[s]
        if self.prediction_type == "v_prediction":
            clean = alpha[s] * x - sigma[s] * output
        h = math.log(alpha[t] / sigma[t]) - math.log(alpha[s] / sigma[s])
        mu = (sigma[t] / sigma[s]) * math.exp(-h) * x + alpha[t] * (1 - math.exp(-2 * h)) * clean
        if self.clean_before is not None:
            d1 = (clean - self.clean_before) / (self.length_before / h)
            mu = mu + 0.5 * alpha[t] * (1 - math.exp(-2 * h)) * d1
        self.clean_before, self.length_before = clean, h
        return mu, sigma[t] * math.sqrt(1 - math.exp(-2 * h))


def edit(
    model: LoadedModel,
    alphas_cumprod: torch.Tensor,
    pixels: Pixels,
    texts: dict[str, Embedding],
    *,
    seed: int,
    steps: int,
    skip: float,
    source_scale: float,
    target_scale: float,
    mask: torch.Tensor | None = None,
    keeps_unmasked: bool = False,
) -> Edited:
    """Edit a picture, uint8 (h, w, 3). texts: `nothing`, `source` and `target`; mask: (h/8, w/8), if it is given.

    keeps_unmasked: our own addition: outside of the mask each step ends on the way that the noises were drawn for.
    """
    height, width, _ = pixels.shape
    shape = (4, height // 8, width // 8)
    walk = Walk(alphas_cumprod, str(model.files.scheduler.get("prediction_type", "epsilon")))

    def asked(x: torch.Tensor, t: int, text: str) -> torch.Tensor:
        tokens, pooled = texts[text]
        added: dict[str, Any] | None = None
        if pooled is not None:
            sizes = torch.tensor([[height, width, 0, 0, height, width]], dtype=torch.float32)
            added = {"text_embeds": pooled[None], "time_ids": sizes}
        output: torch.Tensor = model.unet(
            x[None], torch.tensor([t]), encoder_hidden_states=tokens[None], added_cond_kwargs=added, return_dict=False
        )[0][0]
        return output

    generator = torch.Generator().manual_seed(seed)
    image = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
    distribution = model.vae.encode(image).latent_dist
    scaling = model.vae.config.scaling_factor

    if mask is None:
        samples = (distribution.mean + distribution.std * torch.randn((10, *shape), generator=generator)) * scaling
        differences = []
        ladder = torch.linspace(0, 999, 51, dtype=torch.float64).round().flip(0)[:-1]
        t = int(ladder[25])
        for sample, noise in zip(samples, torch.randn((10, *shape), generator=generator), strict=True):
            z = walk.alpha[t] * sample + walk.sigma[t] * noise
            guided = []
            for text in ("source", "target"):
                unconditional = asked(z, t, "nothing")
                guided.append(unconditional + target_scale * (asked(z, t, text) - unconditional))
            differences.append((guided[1] - guided[0]).abs())
        difference = torch.stack(differences).mean(dim=(0, 1))
        ceiling = 3.0 * difference.mean()
        mask = (difference.clamp(0, float(ceiling)) / ceiling > 0.5).float()

    start = distribution.mean[0] * scaling
    timesteps = [int(t) for t in torch.linspace(1000 - round(1000 * skip) - 1, 1, steps, dtype=torch.float64)]
    way = {0: start}
    for t in reversed(timesteps):
        way[t] = walk.alpha[t] * start + walk.sigma[t] * torch.randn((1, *shape), generator=generator)[0]
    first = way[timesteps[0]]
    drawn = dict(way)
    targets = [*timesteps[1:], 0]

    noises = []
    walk.forget()
    for s, t in zip(timesteps, targets, strict=True):
        unconditional = asked(way[s], s, "nothing")
        output = unconditional + source_scale * (asked(way[s], s, "source") - unconditional)
        mu, std = walk.towards(way[s], output, s, t)
        noises.append((way[t] - mu) / std)
        way[t] = mu + std * noises[-1]

    x = first
    walk.forget()
    for s, t, noise in zip(timesteps, targets, noises, strict=True):
        unconditional = asked(x, s, "nothing")
        output = unconditional + mask * target_scale * (asked(x, s, "target") - unconditional)
        mu, std = walk.towards(x, output, s, t)
        x = mu + std * noise
        if keeps_unmasked:
            x = mask * x + (1 - mask) * drawn[t]
    return Edited(mask, start, noises, x)
