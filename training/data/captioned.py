"""Pictures with their captions, as stage 2 learns them: crops, prompts in the training form, masks, noise.

All that is random about an example, its noise and timestep included, comes from seeds of the run shell, so that a
resumed run and one on more processes compute the same.
"""

import hashlib
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np
import torch

from services.diffusion.conditioning.prompts import Tokenized, Vocabulary, training_form
from training.data.buckets import Cropped, Pixels, crop_to
from training.data.formats import DataError, JsonItems, LeftOut, OnError, SimilarImage
from training.data.masks import MaskSpec, draw_mask
from training.data.pictures import load
from training.data.skipping import first_usable
from training.runs import Batch, seed_of
from training.world import draw, sample_scene
from training.world.captions import background_sentence, object_sentence

FACTOR = 8  # pixels of a latent's side


class Source(Protocol):
    """A numbered set of pictures with captions."""

    def __len__(self) -> int: ...

    def picture(self, position: int) -> Pixels:
        """Return a picture; nothing about it is random."""
        ...

    def caption(self, position: int, seed: int) -> str:
        """Return its caption, whose wording may depend on the seed."""
        ...


class Drawn:
    """Scenes of the train split. A short caption tells one or two of a picture's sentences, as people's captions do."""

    def __init__(self, scenes: int, size: int, *, short: bool) -> None:
        self._scenes, self._size, self._short = scenes, size, short

    def __len__(self) -> int:
        return self._scenes

    def picture(self, position: int) -> Pixels:
        """Draw a scene."""
        return draw(sample_scene(position), self._size)

    def caption(self, position: int, seed: int) -> str:
        """Return the whole caption or a part of it."""
        scene = sample_scene(position)
        sentences = [background_sentence(scene.background), *map(object_sentence, scene.objects)]
        if self._short:
            rng = random.Random(seed)
            chosen = sorted(rng.sample(range(len(sentences)), rng.randint(1, 2)))
            sentences = [sentences[index] for index in chosen]
        return " ".join(sentences)


class Published:
    """The items of a JSON file that has pictures and captions."""

    def __init__(self, items: JsonItems) -> None:
        self._items = items

    def __len__(self) -> int:
        return len(self._items)

    def picture(self, position: int) -> Pixels:
        """Read a picture.

        Raises:
            DataError: it is damaged.
        """
        return load(self._item(position).image)

    def caption(self, position: int, seed: int) -> str:
        """Return the item's caption."""
        return self._item(position).caption

    def digest(self) -> str:
        """Return a digest of which pictures these are, in their order."""
        digest = hashlib.sha256()
        for position in range(len(self)):
            digest.update(f"{self._item(position).image}\n".encode())
        return digest.hexdigest()

    def _item(self, position: int) -> SimilarImage:
        item = self._items.item(position, 0)
        assert isinstance(item, SimilarImage)
        return item


class Learned(NamedTuple):
    """One example. `latents` are posterior means and deviations, (2, 4, h/8, w/8), where they are precomputed."""

    cropped: Cropped | None
    prompt: Tokenized
    latents: torch.Tensor | None
    mask: Pixels | None
    time_ids: tuple[int, ...]


@dataclass(frozen=True)
class Captioned:
    """What a run of stage 2 learns from.

    A picture that turns out to be damaged stops the run, or the next one takes its place and `counts` has it.
    """

    source: Source
    vocabulary: Vocabulary
    second: Vocabulary | None
    size: int
    random_crop: bool
    flip: bool
    empty_prompts: float
    masks: MaskSpec | None
    on_error: OnError = "stop"
    latents: Callable[[int], torch.Tensor] | None = None
    counts: Counter[str] = field(default_factory=Counter)

    def __len__(self) -> int:
        return len(self.source)

    def example(self, position: int, seed: int) -> Learned:
        """Return an example.

        Raises:
            DataError: the picture is damaged, or with "skip" a hundred in a row are.
        """
        return first_usable(lambda at: self._example(at, seed), position, len(self), self.on_error, self.counts)

    def cropped(self, position: int, seed: int) -> Cropped:
        """Return a picture in the size that is learned.

        Raises:
            DataError: it is damaged; `LeftOut` where that does not stop the run.
        """
        generator = np.random.default_rng(seed_of(seed, "crop"))
        try:
            pixels = self.source.picture(position)
        except DataError as error:
            if self.on_error == "stop":
                raise
            raise LeftOut(str(error)) from None
        return crop_to(pixels, self.size, random_crop=self.random_crop, flip=self.flip, generator=generator)

    def _example(self, position: int, seed: int) -> Learned:
        generator = np.random.default_rng(seed)
        prompt = training_form(self.vocabulary, self.source.caption(position, seed), second=self.second)
        if generator.random() < self.empty_prompts:
            prompt = training_form(self.vocabulary, "", second=self.second, chunks=len(prompt.chunks))
        mask = None if self.masks is None else draw_mask(self.size, self.size, self.masks, generator)[0]
        # A picture is not read where its latents say all.
        needs_pixels = self.latents is None or mask is not None or self.second is not None
        cropped = self.cropped(position, seed) if needs_pixels else None
        latents = None if self.latents is None else self.latents(position)
        if latents is not None and latents.isnan().any():
            raise DataError(f"picture {position} was left out when the latents were made; delete them to try it again")
        return Learned(cropped, prompt, latents, mask, cropped.time_ids() if cropped else ())


@dataclass(frozen=True)
class Collate:
    """Stacks examples and draws the noise of their losses.

    `input_ids` (and `second_ids`) are the pieces of all prompts, int64 (pieces, 77); `chunks` says how many of them
    each prompt has. Masks are uint8 (b, 1, h, w), 1 where the picture is to be painted. A `timestep_shift` above 1
    draws noisy timesteps more often (Esser et al. 2024, eq. 23, with the timestep as a share of all), 1 all evenly.
    """

    size: int
    train_timesteps: int
    noise_offset: float = 0.0
    input_perturbation: float = 0.0
    timestep_shift: float = 1.0

    def __call__(self, examples: list[Learned], seeds: list[int]) -> Batch:
        """Return the tensors of one forward pass."""
        batch: Batch = {
            "input_ids": _pieces([example.prompt.chunks for example in examples]),
            "chunks": torch.tensor([len(example.prompt.chunks) for example in examples]),
        }
        second = [example.prompt.second for example in examples if example.prompt.second is not None]
        if second:
            batch["second_ids"] = _pieces(second)
            batch["time_ids"] = torch.tensor([example.time_ids for example in examples], dtype=torch.float32)
        pixels = [example.cropped.pixels for example in examples if example.cropped is not None]
        if pixels:
            batch["pixels"] = torch.from_numpy(np.stack(pixels))
        latents = [example.latents for example in examples if example.latents is not None]
        if latents:
            batch["latents"] = torch.stack(latents)
        masks = [example.mask for example in examples if example.mask is not None]
        if masks:
            batch["mask"] = torch.from_numpy(np.stack(masks) > 0).to(torch.uint8)[:, None]
        drawn = [self._draw(torch.Generator().manual_seed(seed), masked=bool(masks)) for seed in seeds]
        return batch | {name: torch.stack([each[name] for each in drawn]) for name in drawn[0]}

    def _draw(self, generator: torch.Generator, *, masked: bool) -> dict[str, torch.Tensor]:
        shape = (4, self.size // FACTOR, self.size // FACTOR)
        noise = torch.randn(shape, generator=generator)
        drawn = {
            "timesteps": self._timestep(generator),
            "posterior_noise": torch.randn(shape, generator=generator),
        }
        if self.noise_offset:
            noise = noise + self.noise_offset * torch.randn((4, 1, 1), generator=generator)
        if self.input_perturbation:
            drawn["perturbed"] = noise + self.input_perturbation * torch.randn(shape, generator=generator)
        if masked:
            drawn["masked_noise"] = torch.randn(shape, generator=generator)
        return drawn | {"noise": noise}

    def _timestep(self, generator: torch.Generator) -> torch.Tensor:
        if self.timestep_shift == 1:
            return torch.randint(self.train_timesteps, (), generator=generator)
        even = torch.rand((), generator=generator, dtype=torch.float64)
        shifted = self.timestep_shift * even / (1 + (self.timestep_shift - 1) * even)
        return (shifted * self.train_timesteps).long()


def _pieces(prompts: Sequence[tuple[tuple[int, ...], ...]]) -> torch.Tensor:
    return torch.tensor([piece for prompt in prompts for piece in prompt])
