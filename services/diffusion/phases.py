"""What the engine sees of a picture under way: phases ask for rows of UNet calls, a request is made of phases."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import torch

from services.diffusion.conditioning.encoder import Embedding
from services.diffusion.pictures import Picture


class Rows(NamedTuple):
    """A request's part of a UNet call.

    sample: float32 (rows, 4 or 9, h/8, w/8); timesteps: (rows,); embeds: (rows, tokens, channels), the
    unconditional one first; timestep_cond: (rows, channels) for guidance-distilled UNets; pooled (rows, channels) and
    time_ids (rows, 6) for SDXL.
    """

    sample: torch.Tensor
    timesteps: torch.Tensor
    embeds: torch.Tensor
    timestep_cond: torch.Tensor | None = None
    pooled: torch.Tensor | None = None
    time_ids: torch.Tensor | None = None


class Embeddings(NamedTuple):
    """A picture's prompts as the UNet takes them; `source`: of an edit, the caption of the picture as it is."""

    prompt: Embedding
    negative: Embedding | None = None
    source: Embedding | None = None


class Condition(NamedTuple):
    """What the UNet is told of some rows: as in `Rows`."""

    embeds: torch.Tensor
    pooled: torch.Tensor | None
    time_ids: torch.Tensor | None

    @classmethod
    def of(cls, prompts: Sequence[Embedding], picture: Picture) -> "Condition":
        """Return the condition of one row per prompt."""
        embeds = torch.stack([prompt.tokens for prompt in prompts])
        pooled = [prompt.pooled for prompt in prompts if prompt.pooled is not None]
        if not pooled:
            return cls(embeds, None, None)
        height, width = float(picture.height), float(picture.width)
        # Original size, top and left of the crop, size: an uncropped picture of this size (LLMGA.md §5.2).
        ids = torch.tensor([height, width, 0.0, 0.0, height, width], device=embeds.device)
        return cls(embeds, torch.stack(pooled), ids.expand(len(pooled), -1))

    def last(self, count: int) -> "Condition":
        """Return the condition of the last rows."""
        return self._each(lambda part: part[-count:])

    def repeated(self, count: int) -> "Condition":
        """Return the condition of all rows, so many times in a row."""
        return self._each(lambda part: torch.cat([part] * count))

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "Condition":
        return Condition(
            change(self.embeds),
            None if self.pooled is None else change(self.pooled),
            None if self.time_ids is None else change(self.time_ids),
        )


class Phase(Protocol):
    """A part of a picture's way that is made of UNet calls."""

    @property
    def is_done(self) -> bool:
        """Whether no call is left."""

    @property
    def row_count(self) -> int:
        """Rows of the next call."""

    def rows(self, latents: torch.Tensor) -> Rows:
        """Return what the UNet is asked at the next call."""

    def accept(self, latents: torch.Tensor, noise_pred: torch.Tensor) -> torch.Tensor:
        """Return the latents behind this call; `noise_pred` is float32 (rows, 4, h/8, w/8)."""


class Request(Protocol):
    """One picture under way, as the engine and the snapshots see it.

    `latents` are float32 (1, 4, h/8, w/8); `calls_done` counts its UNet calls. `wants_source`: whether its picture has
    to be encoded first.
    """

    picture: Picture
    latents: torch.Tensor
    calls_done: int
    wants_source: bool

    @property
    def wants_prompts(self) -> bool:
        """Whether it cannot go on without its embeddings; a picture that only lacks decoding needs none."""

    @property
    def phase(self) -> Phase | None:
        """The phase that wants the next UNet call."""

    @property
    def calls(self) -> int:
        """UNet calls of the whole picture."""

    @property
    def steps_done(self) -> int:
        """Steps done of `total_steps`."""

    @property
    def total_steps(self) -> int:
        """Steps as its followers count them."""

    def condition(self, embeddings: Embeddings) -> None:
        """Take the embeddings; the request can be stepped from now on."""

    def accept(self, noise_pred: torch.Tensor) -> None:
        """Take the UNet's answer for the rows of the present phase."""

    def pop_denoised(self) -> torch.Tensor | None:
        """Return the clean latents of the last call if they are to be shown, once."""

    def memory(self) -> dict[str, Any]:
        """Return what a snapshot has to hold beside latents and calls: JSON but for tensors that nobody changes."""

    def go_on(self, calls_done: int, latents: torch.Tensor, memory: dict[str, Any]) -> None:
        """Take over the state of a request that was made with the same arguments; this one is new."""
