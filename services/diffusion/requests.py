"""The state of one picture on its way: data, and what one UNet call does to them.

A request is a list of phases. A phase asks for rows (two when guided, one when not), gets the UNet's answer
for them, and takes the latents one call further; the engine never looks inside. All randomness is the
request's own generator, seeded and on the CPU, so that the noise is that of diffusers for the same seed on
any device. Here is the request for a picture that is denoised once; an edit has its own (`services.diffusion.editing`).
"""

import math
from dataclasses import dataclass, field
from typing import Any

import torch

from services.diffusion.phases import Condition, Embeddings, Rows
from services.diffusion.pictures import LATENT_CHANNELS, LATENT_PX, Picture
from services.diffusion.previews import calls_shown
from services.diffusion.solvers import Solver
from services.diffusion.sources import Known


@dataclass(slots=True)
class Denoise:
    """The phase that takes noise to a picture's latents, by classifier-free guidance (Ho & Salimans 2022).

    `condition` has two rows, the unconditional one first, or one. Outside `guidance_interval`, in shares of the calls,
    only the conditional row is asked (Kynkäänniemi et al. 2024). `known`: of a picture that is painted in part.
    """

    solver: Solver
    guidance_scale: float
    guidance_rescale: float
    guidance_interval: tuple[float, float]
    condition: Condition
    timestep_cond: torch.Tensor | None = None
    known: Known | None = None
    calls_done: int = 0  # more than 0 at first for a picture that goes on from a snapshot
    calls_shown: frozenset[int] = frozenset()
    denoised: torch.Tensor | None = None  # the clean latents that the last of those calls pointed to

    @property
    def is_done(self) -> bool:
        """Whether no call is left."""
        return self.calls_done == self.solver.calls

    @property
    def row_count(self) -> int:
        """Rows of the next call."""
        start, end = self.guidance_interval
        is_guided = start <= self.calls_done / self.solver.calls < end
        return len(self.condition.embeds) if is_guided else 1

    def rows(self, latents: torch.Tensor) -> Rows:
        """Return what the UNet is asked at the next call."""
        sample = self.solver.scale_model_input(latents, self.calls_done)
        if self.known is not None:
            sample = self.known.beside(sample)
        count = self.row_count
        embeds, pooled, time_ids = self.condition.last(count)
        return Rows(
            sample.expand(count, -1, -1, -1),
            self.solver.timesteps[self.calls_done].expand(count),
            embeds,
            self.timestep_cond,
            pooled,
            time_ids,
        )

    def accept(self, latents: torch.Tensor, noise_pred: torch.Tensor) -> torch.Tensor:
        """Return the latents behind this call; `noise_pred` is float32 (rows, 4, h/8, w/8)."""
        if self.row_count == 2:
            unconditional, conditional = noise_pred.chunk(2)
            noise_pred = unconditional + self.guidance_scale * (conditional - unconditional)
            if self.guidance_rescale > 0:
                noise_pred = rescaled(noise_pred, conditional, self.guidance_rescale)
        if self.calls_done + 1 in self.calls_shown:
            self.denoised = self.solver.denoised(noise_pred, self.calls_done, latents)
        stepped = self.solver.step(noise_pred, self.calls_done, latents)
        self.calls_done += 1
        return stepped if self.known is None else self.known.restored(stepped, self.solver, self.calls_done)


@dataclass(slots=True)
class RenderRequest:
    """A picture that is denoised once (`Request`); its latents are zeros until its source is encoded."""

    picture: Picture
    generator: torch.Generator
    latents: torch.Tensor
    solver: Solver
    guidance_channels: int | None
    wants_source: bool = False
    known: Known | None = None
    phases: list[Denoise] = field(default_factory=list)
    calls_done: int = 0

    @property
    def wants_prompts(self) -> bool:
        """Whether it cannot go on without its embeddings (`Request`)."""
        return not self.phases and self.calls_done < self.calls

    @property
    def calls(self) -> int:
        """UNet calls of the whole picture."""
        return self.solver.calls

    def start(self, latents: torch.Tensor, known: Known | None) -> None:
        """Take the first latents, and what is known of the picture that they are from."""
        self.latents, self.known = latents, known
        self.wants_source = False

    def condition(self, embeddings: Embeddings) -> None:
        """Take the embeddings (`Request`)."""
        prompt, negative, _ = embeddings
        phase = Denoise(
            self.solver,
            self.picture.guidance_scale,
            self.picture.guidance_rescale,
            self.picture.guidance_interval,
            Condition.of([prompt] if negative is None else [negative, prompt], self.picture),
            known=self.known,
            calls_done=self.calls_done,
            calls_shown=calls_shown(self.solver.calls, self.picture.previews),
        )
        if self.guidance_channels is not None:
            embedding = guidance_embedding(self.picture.guidance_scale, self.guidance_channels)
            phase.timestep_cond = embedding.to(self.latents.device)
        self.phases.append(phase)

    @property
    def phase(self) -> Denoise | None:
        """The phase that wants the next UNet call."""
        return self.phases[0] if self.phases else None

    def accept(self, noise_pred: torch.Tensor) -> None:
        """Take the UNet's answer (`Request`)."""
        phase = self.phases[0]
        self.latents = phase.accept(self.latents, noise_pred)
        self.calls_done += 1
        if phase.is_done:
            del self.phases[0]

    def pop_denoised(self) -> torch.Tensor | None:
        """Return the clean latents of the last call if they are to be shown, once."""
        phase = self.phase
        if phase is None:
            return None
        denoised, phase.denoised = phase.denoised, None
        return denoised

    @property
    def steps_done(self) -> int:
        """Steps done of `total_steps`."""
        return self.solver.steps_done(self.calls_done)

    @property
    def total_steps(self) -> int:
        """Steps that are made: fewer than `num_inference_steps` at a strength below 1."""
        return self.solver.num_inference_steps

    def memory(self) -> dict[str, Any]:
        """Return what the solver remembers, the generator's state, and what is known of the picture."""
        return {
            "solver": self.solver.memory(),
            "generator": self.generator.get_state(),
            "known": None if self.known is None else self.known.parts(),
        }

    def go_on(self, calls_done: int, latents: torch.Tensor, memory: dict[str, Any]) -> None:
        """Take over the state of a request that was made with the same arguments (`Request`)."""
        self.solver.remember(memory["solver"])
        self.generator.set_state(memory["generator"].cpu())
        self.start(latents, None if memory["known"] is None else Known(**memory["known"]))
        self.calls_done = calls_done


def prepare(
    picture: Picture,
    *,
    scheduler_config: dict[str, Any],
    guidance_channels: int | None,
    device: torch.device,
) -> RenderRequest:
    """Return the request of a picture, not yet conditioned; without a source its first noise is drawn.

    `guidance_channels` is the UNet's `time_cond_proj_dim`: where it is set, guidance is an input of the UNet
    (LCM, Luo et al. 2023) and one row is enough.

    Raises:
        InvalidRequest: the scheduler cannot make this number of steps, or the strength leaves none.
    """
    source = picture.source
    generator = torch.Generator("cpu").manual_seed(picture.seed)
    solver = Solver(
        picture.scheduler,
        scheduler_config,
        picture.num_inference_steps,
        generator,
        device,
        timesteps=picture.timesteps,
        strength=None if source is None else source.strength,
    )
    shape = (1, LATENT_CHANNELS, picture.height // LATENT_PX, picture.width // LATENT_PX)
    if source is None:
        latents = torch.randn(shape, generator=generator).to(device) * solver.init_noise_sigma
    else:
        latents = torch.zeros(shape, device=device)
    return RenderRequest(
        picture=picture,
        generator=generator,
        latents=latents,
        solver=solver,
        guidance_channels=guidance_channels,
        wants_source=source is not None,
    )


def is_guided(guidance_scale: float, guidance_channels: int | None) -> bool:
    """Return whether a picture takes an unconditional row beside the conditional one."""
    return guidance_scale > 1 and guidance_channels is None


def rescaled(guided: torch.Tensor, conditional: torch.Tensor, share: float) -> torch.Tensor:
    """Return a guided prediction with a share of the conditional one's deviation (Lin et al. 2023, §3.4)."""
    dims = list(range(1, guided.ndim))
    factor = conditional.std(dim=dims, keepdim=True) / guided.std(dim=dims, keepdim=True)
    return share * (guided * factor) + (1 - share) * guided


def guidance_embedding(guidance_scale: float, channels: int) -> torch.Tensor:
    """Return the sinusoidal embedding (1, channels) of `guidance_scale - 1` (LCM, Luo et al. 2023)."""
    half = channels // 2
    frequencies = torch.exp(torch.arange(half, dtype=torch.float32) * -(math.log(10_000.0) / (half - 1)))
    angles = torch.tensor([guidance_scale - 1]) * 1_000.0 * frequencies
    embedding = torch.cat([torch.sin(angles), torch.cos(angles)])
    return torch.nn.functional.pad(embedding, (0, channels - 2 * half))[None]
