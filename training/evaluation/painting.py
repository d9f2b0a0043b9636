"""Diffusion models that draw for the figures: a checkpoint folder in diffusers layout, or the running system.

A folder is drawn from in batches, with the prompts of serving (`services.diffusion.conditioning`: LLMGA's long form)
and the checkpoint's own scheduler, steps and guidance; the first noise of a picture comes from its seed as in
serving. A UNet with nine input channels fills holes (LLMGA.md §5.3).
"""

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from tqdm import tqdm

from services.diffusion.checkpoints import ServingDefaults
from services.diffusion.conditioning.encoder import PromptEncoder, TokenizerVocabulary
from services.diffusion.conditioning.prompts import PromptPair, tokenize
from services.diffusion.libraries import AutoencoderKL, CLIPTextModel, CLIPTokenizer, UNet2DConditionModel, quiet
from services.diffusion.seams import Mask
from services.diffusion.solvers import build_scheduler, default_scheduler
from shared.contracts.generation import PromptEncoding
from training.world.drawing import Pixels

LATENT_PX = 8
BATCH = 16
FILLS = 9  # input channels of a UNet that fills holes


class Painter(Protocol):
    """Something that draws captions."""

    def render(self, captions: Sequence[str], seeds: Sequence[int]) -> list[Pixels]:
        """Return one picture per caption, uint8 (height, width, 3)."""
        ...


class Filler(Protocol):
    """Something that fills holes."""

    def fill(
        self, pixels: Sequence[Pixels], holes: Sequence[Mask], captions: Sequence[str], seeds: Sequence[int]
    ) -> list[Pixels]:
        """Return the pictures with their holes painted by the captions."""
        ...


class FolderPainter:
    """A checkpoint folder, SD1.5's layout, in this process."""

    def __init__(
        self,
        folder: Path,
        *,
        batch: int = BATCH,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
    ) -> None:
        quiet()
        self._batch = batch
        self._unet = UNet2DConditionModel.from_pretrained(folder / "unet", torch_dtype=torch.float32).eval()
        self._vae = AutoencoderKL.from_pretrained(folder / "vae", torch_dtype=torch.float32).eval()
        text_encoder = CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=torch.float32).eval()
        self._vocabulary = TokenizerVocabulary(CLIPTokenizer.from_pretrained(folder / "tokenizer"))
        self._encoder = PromptEncoder(text_encoder, torch.device("cpu"), torch.float32)
        self._scheduler = _json(folder / "scheduler" / "scheduler_config.json")
        serving = ServingDefaults(**(_json(folder / "serving.json") if (folder / "serving.json").exists() else {}))
        self._steps = num_inference_steps or serving.num_inference_steps
        self._guidance = serving.guidance_scale if guidance_scale is None else guidance_scale
        self.side_px = int(self._unet.config.sample_size) * LATENT_PX
        self.fills = int(self._unet.config.in_channels) == FILLS

    def render(self, captions: Sequence[str], seeds: Sequence[int]) -> list[Pixels]:
        """Return one picture per caption."""
        if self.fills:
            raise ValueError("this checkpoint fills holes: its UNet has 9 input channels; give a text-to-image one")
        return self._paint(captions, seeds, None)

    def fill(
        self, pixels: Sequence[Pixels], holes: Sequence[Mask], captions: Sequence[str], seeds: Sequence[int]
    ) -> list[Pixels]:
        """Return the pictures with their holes painted by the captions; the rest is as it was."""
        if not self.fills:
            raise ValueError("this checkpoint draws from words alone: its UNet has 4 input channels, not 9")
        known = [np.where(hole[..., None], np.uint8(0), picture) for picture, hole in zip(pixels, holes, strict=True)]
        painted = self._paint(captions, seeds, self._masked_all(pixels, holes))
        return [np.where(hole[..., None], new, old) for new, old, hole in zip(painted, known, holes, strict=True)]

    def repaint(
        self, pixels: Sequence[Pixels], holes: Sequence[Mask], captions: Sequence[str], seeds: Sequence[int]
    ) -> list[Pixels]:
        """Return whole pictures as the last step of filling their holes leaves them, from the pictures themselves on.

        That is the least that a strength can ask for; of what is painted the hole will be seen.
        """
        with torch.inference_mode():
            latents = [self._latents(torch.from_numpy(np.ascontiguousarray(picture))) for picture in pixels]
        return self._paint(captions, seeds, self._masked_all(pixels, holes), latents)

    def _masked_all(self, pixels: Sequence[Pixels], holes: Sequence[Mask]) -> list[torch.Tensor]:
        with torch.inference_mode():
            return [self._masked(picture, hole) for picture, hole in zip(pixels, holes, strict=True)]

    def _masked(self, picture: Pixels, hole: Mask) -> torch.Tensor:
        """Return a hole's mask and the latents of what is known, (1, 5, h/8, w/8)."""
        mask = torch.from_numpy(hole.astype(np.float32))[None, None]
        latents = self._latents(torch.from_numpy(np.ascontiguousarray(picture)), 1 - mask)
        small = torch.nn.functional.interpolate(mask, size=latents.shape[-2:], mode="nearest")
        return torch.cat([small, latents], dim=1)

    def _latents(self, picture: torch.Tensor, known: torch.Tensor | float = 1.0) -> torch.Tensor:
        """Return a picture's latents, (1, 4, h/8, w/8), gray where it is not known."""
        image = picture.permute(2, 0, 1)[None].float() / 127.5 - 1
        latents: torch.Tensor = self._vae.encode(image * known).latent_dist.mode() * self._vae.config.scaling_factor
        return latents

    def _paint(
        self,
        captions: Sequence[str],
        seeds: Sequence[int],
        masked: Sequence[torch.Tensor] | None,
        begun: Sequence[torch.Tensor] | None = None,
    ) -> list[Pixels]:
        """Draw in batches of prompts that are equally long; the last step alone of those that are `begun`."""
        pairs = [tokenize(self._vocabulary, PromptEncoding.LLMGA, caption, "", weighted=False) for caption in captions]
        by_length: dict[int, list[int]] = defaultdict(list)
        for index, pair in enumerate(pairs):
            by_length[pair.length].append(index)
        batches = [
            indices[start : start + self._batch]
            for indices in by_length.values()
            for start in range(0, len(indices), self._batch)
        ]
        painted: dict[int, Pixels] = {}
        with torch.inference_mode(), tqdm(total=len(captions), desc="drawing", unit="pictures") as bar:
            for batch in batches:
                rest = None if masked is None else torch.cat([masked[index] for index in batch])
                before = None if begun is None else torch.cat([begun[index] for index in batch])
                chosen = [pairs[index] for index in batch], [seeds[index] for index in batch]
                pictures = self._paint_batch(*chosen, rest, before)
                painted.update(zip(batch, pictures, strict=True))
                bar.update(len(batch))
        return [painted[index] for index in range(len(captions))]

    def _paint_batch(
        self,
        pairs: Sequence[PromptPair],
        seeds: Sequence[int],
        masked: torch.Tensor | None,
        begun: torch.Tensor | None,
    ) -> list[Pixels]:
        embeds = [self._encoder.encode(pair.prompt).tokens for pair in pairs]
        is_guided = self._guidance > 1
        if is_guided:
            embeds = [self._encoder.encode(pair.negative).tokens for pair in pairs if pair.negative] + embeds
        hidden = torch.stack(embeds)
        scheduler = build_scheduler(default_scheduler(self._scheduler), self._scheduler)
        scheduler.set_timesteps(self._steps)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        side = self.side_px // LATENT_PX
        size = masked.shape[-2:] if masked is not None else (side, side)
        noise = [torch.randn((1, 4, *size), generator=generator) for generator in generators]
        timesteps = scheduler.timesteps
        latents = torch.cat(noise) * scheduler.init_noise_sigma
        if begun is not None:
            begin = (self._steps - 1) * scheduler.order
            if hasattr(scheduler, "set_begin_index"):
                scheduler.set_begin_index(begin)
            timesteps = timesteps[begin:]
            latents = scheduler.add_noise(begun, torch.cat(noise), timesteps[:1].expand(len(begun)))
        for timestep in timesteps:
            sample = scheduler.scale_model_input(latents, timestep)
            if masked is not None:
                sample = torch.cat([sample, masked], dim=1)
            rows = torch.cat([sample, sample]) if is_guided else sample
            prediction = self._unet(rows, timestep, encoder_hidden_states=hidden).sample
            if is_guided:
                without, by_prompt = prediction.chunk(2)
                prediction = without + self._guidance * (by_prompt - without)
            latents = scheduler.step(prediction, timestep, latents, return_dict=False)[0]
        image = self._vae.decode(latents / self._vae.config.scaling_factor).sample
        pixels = ((image * 0.5 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
        return list(pixels.permute(0, 2, 3, 1).numpy())


def _json(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content
