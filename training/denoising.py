"""The loss of stage 2: what a UNet must predict of noisy latents, and with what weight.

Pure functions on tensors and one object, `Denoising`, that has the frozen parts: text encoders, autoencoder and
schedule. `z_t = sqrt(abar_t) z_0 + sqrt(1 - abar_t) noise` (Ho et al. 2020); the target is the noise, or the velocity
`v = sqrt(abar_t) noise - sqrt(1 - abar_t) z_0` (Salimans and Ho 2022), as the checkpoint's scheduler says.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F

from training.runs import Batch

Prediction = Literal["epsilon", "v_prediction"]


@dataclass(frozen=True)
class Schedule:
    """How much of the latents is left at each timestep: `alphas_cumprod` is float32 (timesteps,)."""

    alphas_cumprod: torch.Tensor
    prediction: Prediction

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "Schedule":
        """Return the schedule of a `scheduler_config.json`.

        Raises:
            ValueError: it asks for a prediction that is neither noise nor velocity.
        """
        from services.diffusion.libraries import DDIMScheduler

        scheduler = DDIMScheduler.from_config(dict(config))
        prediction = scheduler.config.prediction_type
        if prediction not in ("epsilon", "v_prediction"):
            raise ValueError(f"prediction_type is {prediction!r}; stage 2 trains epsilon and v_prediction")
        return cls(scheduler.alphas_cumprod.float(), prediction)

    def _shares(self, timesteps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        kept = self.alphas_cumprod.to(timesteps.device)[timesteps][:, None, None, None]
        return kept.sqrt(), (1 - kept).sqrt()

    def noisy(self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """Return latents (b, c, h, w) with the noise of timesteps (b,)."""
        signal, sigma = self._shares(timesteps)
        return signal * latents + sigma * noise

    def target(self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """Return what the UNet must predict."""
        if self.prediction == "epsilon":
            return noise
        signal, sigma = self._shares(timesteps)
        return signal * noise - sigma * latents

    def weights(self, timesteps: torch.Tensor, gamma: float | None) -> torch.Tensor:
        """Return the weight of each example, (b,): one, or min-SNR's (Hang et al. 2023)."""
        if gamma is None:
            return torch.ones_like(timesteps, dtype=torch.float32)
        kept = self.alphas_cumprod.to(timesteps.device)[timesteps]
        snr = kept / (1 - kept)
        return snr.clamp(max=gamma) / (snr if self.prediction == "epsilon" else snr + 1)


def joined(pieces: torch.Tensor, chunks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Put the pieces of each prompt together, without the begin and end tokens between two (LLMGA.md §5.1).

    pieces: (pieces, 77, c), those of a prompt in a row. chunks: (b,), how many each prompt has.
    Returns the embeddings (b, 75 n + 2, c) for the longest prompt's n, and which tokens are each prompt's own, bool
    (b, 75 n + 2); None where all are. So a prompt's loss does not depend on the company that it is learned in.
    """
    counts = [int(count) for count in chunks.tolist()]
    width, content = pieces.shape[-1], pieces.shape[1] - 2
    rows, starts = [], [sum(counts[:index]) for index in range(len(counts))]
    for start, count in zip(starts, counts, strict=True):
        own = pieces[start : start + count]
        rows.append(torch.cat([own[0, :1], own[:, 1:-1].reshape(count * content, width), own[-1, -1:]]))
    lengths = torch.tensor([len(row) for row in rows], device=pieces.device)
    embeddings = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    if len(set(counts)) == 1:
        return embeddings, None
    return embeddings, torch.arange(embeddings.shape[1], device=pieces.device) < lengths[:, None]


@dataclass(frozen=True)
class Denoising:
    """Everything but the UNet. `second` is SDXL's second text encoder; precisions are those of the parts."""

    schedule: Schedule
    vae: Any
    text_encoder: Any
    second: Any = None
    snr_gamma: float | None = None

    def __call__(self, unet: Any, batch: Batch) -> dict[str, torch.Tensor]:
        """Return the mean loss of a batch of `training.data.captioned.Collate`."""
        with torch.no_grad():
            latents = self.latents(batch)
            noise: torch.Tensor = batch["perturbed"] if "perturbed" in batch else batch["noise"]
            noisy = self.schedule.noisy(latents, noise, batch["timesteps"])
            sample = torch.cat([noisy, *self.known(batch)], dim=1)
            conditions = self.conditions(batch)
        predicted = unet(sample, batch["timesteps"], **conditions, return_dict=False)[0].float()
        target = self.schedule.target(latents, batch["noise"], batch["timesteps"])
        each = F.mse_loss(predicted, target, reduction="none").mean((1, 2, 3))
        weights = self.schedule.weights(batch["timesteps"], self.snr_gamma)
        return {"loss": (weights * each).mean()}

    def latents(self, batch: Batch) -> torch.Tensor:
        """Return unit-variance latents, a sample of each picture's posterior, float32 (b, 4, h/8, w/8)."""
        if "latents" in batch:
            mean, std = batch["latents"].float().unbind(1)
            latents: torch.Tensor = (mean + std * batch["posterior_noise"]) * float(self.vae.config.scaling_factor)
            return latents
        return self._encoded(unit(batch["pixels"]), batch["posterior_noise"])

    def known(self, batch: Batch) -> list[torch.Tensor]:
        """Return what an inpainting UNet is told beside the noisy latents: mask (1) and masked latents (4)."""
        if "mask" not in batch:
            return []
        mask = batch["mask"].float()
        masked = self._encoded(unit(batch["pixels"]) * (1 - mask), batch["masked_noise"])
        return [F.interpolate(mask, size=masked.shape[-2:], mode="nearest"), masked]

    def conditions(self, batch: Batch) -> dict[str, Any]:
        """Return the prompts as the UNet takes them."""
        if self.second is None:
            embeddings, own = joined(self.text_encoder(batch["input_ids"])[0].float(), batch["chunks"])
            return {"encoder_hidden_states": embeddings, "encoder_attention_mask": own}
        first = self.text_encoder(batch["input_ids"], output_hidden_states=True).hidden_states[-2]
        output = self.second(batch["second_ids"], output_hidden_states=True)
        pieces = torch.cat([first, output.hidden_states[-2]], dim=-1).float()
        embeddings, own = joined(pieces, batch["chunks"])
        last = batch["chunks"].cumsum(0) - 1  # pooled is the last piece's (LLMGA.md §5.2)
        added = {"text_embeds": output[0][last].float(), "time_ids": batch["time_ids"]}
        return {"encoder_hidden_states": embeddings, "encoder_attention_mask": own, "added_cond_kwargs": added}

    def _encoded(self, pictures: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        posterior = self.vae.encode(pictures.to(self.vae.dtype)).latent_dist
        sample: torch.Tensor = posterior.mean.float() + posterior.std.float() * noise
        return sample * float(self.vae.config.scaling_factor)


def unit(pixels: torch.Tensor) -> torch.Tensor:
    """Return uint8 (b, h, w, 3) as float32 (b, 3, h, w) in [-1, 1]."""
    return pixels.permute(0, 3, 1, 2).float().div(127.5).sub(1).contiguous()
