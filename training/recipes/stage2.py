"""Recipes of stage 2: a Stable Diffusion learns the long prompts that the language model writes."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from training.recipes.recipe import Recipe, Settings


class JsonPictures(Settings):
    """A file with `image` and `caption` in its items (LLMGA.md §8), and the folder of its pictures."""

    json_file: Path = Field(alias="json")
    images: Path


class WorldPictures(Settings):
    """Drawn scenes. `captions`: whole ones, or short ones that tell one or two of a picture's sentences."""

    scenes: int = Field(ge=1)
    captions: Literal["whole", "short"] = "whole"


class Fresh(Settings):
    """A new base, where there is none to start from: a UNet with random weights around trained parts.

    vae, clip: folders that `training.bases.vae` and `training.bases.clip` have written. unet, scheduler, serving: what
    the configurations say beside what follows from the parts.
    """

    vae: Path
    clip: Path
    unet: dict[str, Any]
    scheduler: dict[str, Any]
    serving: dict[str, Any]


class Stage2Recipe(Recipe):
    """A run of stage 2.

    base: folder in diffusers layout; written first where it is missing and `fresh` is given. precomputed: folder for
    the latents of all pictures, made once; without it they are made in each step. mask_scale: of the published masks,
    which are in pixels of 512 (LLMGA.md §7.3). empty_prompts: share of pictures that are learned without a prompt.
    timestep_shift: above 1, noisy timesteps are drawn more often. vae_precision: "no" is float32, which SDXL's
    autoencoder needs.
    """

    kind: Literal["sd15", "sdxl"]
    inpainting: bool = False
    base: Path
    fresh: Fresh | None = None
    data: JsonPictures | WorldPictures
    size: int = Field(ge=16, multiple_of=8)
    crop: Literal["center", "random"] = "center"
    flip: bool = True
    precomputed: Path | None = None
    mask_scale: float = Field(1.0, gt=0)
    empty_prompts: float = Field(0.0, ge=0, lt=1)
    snr_gamma: float | None = Field(None, gt=0)
    noise_offset: float = Field(0.0, ge=0)
    input_perturbation: float = Field(0.0, ge=0)
    timestep_shift: float = Field(1.0, ge=1)
    gradient_checkpointing: bool = False
    vae_precision: Literal["no", "as_plan"] = "no"
    on_error: Literal["stop", "skip"] = "stop"
    saved_as: Literal["bfloat16", "float16", "float32"] = "float16"

    @model_validator(mode="after")
    def _fits_together(self) -> "Stage2Recipe":
        if self.precomputed and (self.flip or self.crop == "random"):
            raise ValueError("precomputed latents are of one crop each: they need flip: false and crop: center")
        if isinstance(self.data, WorldPictures) and self.flip:
            raise ValueError("the world's captions tell left from right: they need flip: false")
        if self.fresh and self.kind != "sd15":
            raise ValueError("a fresh base is of the kind sd15")
        return self
