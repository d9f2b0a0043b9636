"""The autoencoder of a tiny Stable Diffusion: factor 8, four latent channels, learned from the world's pictures.

    accelerate launch -m training.bases.vae --recipe training/recipes/tiny-vae.yaml

After training the latents are standardized: each channel's mean and deviation are folded into the two 1x1
quantization convolutions, so that `latents * scaling_factor` has zero mean and unit variance, as the UNet wants it.
The folder's `vae/` is then SD1.5's layout. A CPU of two cores needs half an hour.
"""

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from training.recipes import Recipe
from training.recipes.command import run
from training.recipes.recipe import Settings

if TYPE_CHECKING:
    from training.runs import Fitted

STAGE = "vae"


class VaeSettings(Settings):
    """The network: channels at full, half, quarter and eighth size. Attention is left out, as pictures are small."""

    channels: tuple[int, ...] = (16, 32, 64, 64)
    layers_per_block: int = Field(1, ge=1)
    norm_groups: int = 8


class VaeRecipe(Recipe):
    """Sizes are sides in pixels; `crop` is how much of each picture is learned from at once.

    base: an autoencoder whose decoder goes on learning while its latents stay what they are, so that UNets that know
    them may be trained before or beside. moment_pictures: for the moments of a new one's latents; the usual number
    gives 0.5 M values of each channel.
    """

    size: int = Field(128, ge=16, multiple_of=8)
    crop: int = Field(128, ge=16, multiple_of=8)
    base: Path | None = None
    network: VaeSettings = VaeSettings()
    kl_weight: float = Field(5e-4, ge=0)
    moment_pictures: int = Field(2_048, ge=2)


def build(recipe: VaeRecipe) -> Any:
    """Return the base, or a new autoencoder with random weights from torch's generator."""
    from services.diffusion.libraries import AutoencoderKL
    from training.bases.reconstruction import initialize

    if recipe.base is not None:
        return AutoencoderKL.from_pretrained(recipe.base, use_safetensors=True, local_files_only=True)
    network = recipe.network
    levels = len(network.channels)
    vae = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=network.channels,
        layers_per_block=network.layers_per_block,
        latent_channels=4,
        norm_num_groups=network.norm_groups,
        sample_size=recipe.size,
        mid_block_add_attention=False,
        force_upcast=False,
    )
    initialize(vae)
    return vae


def decodes(name: str) -> bool:
    """Return whether a parameter of `Reconstruction` has its place behind the latents."""
    return name.startswith(("vae.decoder.", "vae.post_quant_conv."))


def train(recipe: VaeRecipe) -> Path:
    """Train, standardize and write `vae/` into the run's folder; return it."""
    return export(recipe, fit_recipe(recipe))


def fit_recipe(recipe: VaeRecipe) -> "Fitted":
    """Train by the recipe."""
    from functools import partial

    import torch

    from training.bases.reconstruction import Reconstruction, WorldPictures, collate, loss_of, masks_of
    from training.runs import fit

    torch.manual_seed(recipe.plan.seed)
    return fit(
        Reconstruction(build(recipe)),
        partial(loss_of, kl_weight=recipe.kl_weight),
        WorldPictures(recipe.size, recipe.crop, masks_of(recipe.size)),
        collate,
        recipe.plan.plan(examples=0),
        recipe.out,
        trainable=decodes if recipe.base is not None else None,
        loaders=recipe.loaders,
        tags={"recipe": recipe.model_dump(mode="json")},
    )


def export(recipe: VaeRecipe, fitted: "Fitted") -> Path:
    """Standardize a new autoencoder's latents, and write `vae/`; the main process does."""
    from training.bases.reconstruction import moments_of, standardize
    from training.world import draw, sample_scene

    target = recipe.out / "vae"
    if not fitted.is_main:
        return target
    vae = (fitted.averaged() if fitted.ema else fitted.model).vae.eval()
    if recipe.base is None:
        pictures = [draw(sample_scene(seed), recipe.size) for seed in range(recipe.moment_pictures)]
        standardize(vae, moments_of(vae, pictures))
    vae.save_pretrained(target, safe_serialization=True)
    return target


def dry_run(recipe: VaeRecipe) -> None:
    """Take two steps, resume from the first and export."""
    from training.runs.resuming import run_twice

    with tempfile.TemporaryDirectory() as folder:
        changes: dict[str, Any] = {"out": Path(folder) / "run", "plan": recipe.plan.dry(), "moment_pictures": 8}
        if recipe.base is not None:
            changes["base"] = Path(folder) / "base"
            build(recipe.model_copy(update={"base": None})).save_pretrained(changes["base"], safe_serialization=True)
        dry = recipe.model_copy(update=changes)
        export(dry, run_twice(lambda: fit_recipe(dry), dry.out))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    return run("training.bases.vae", __doc__, VaeRecipe, STAGE, arguments, train=train, dry_run=dry_run)


if __name__ == "__main__":
    sys.exit(main())
