"""CLIP for the tiny pair: the text encoder that Stable Diffusion reads and the vision tower of the language model.

    accelerate launch -m training.bases.clip --recipe training/recipes/tiny-clip.yaml

Both learn together from the world's pictures and texts (`training.bases.alignment`). The run's folder then holds
`tokenizer/` and `text_encoder/` in SD1.5's layout and `vision_tower/` as a `CLIPVisionModel` with its
`preprocessor_config.json`. A CPU of two cores needs a quarter of an hour.
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

STAGE = "clip"
TOKENIZER_SCENES = 4_000  # whose captions and requests the tokenizer learns from


class TransformerSettings(Settings):
    """One encoder; `heads` divide `hidden_size`."""

    hidden_size: int = 128
    layers: int = 4
    heads: int = 4


class ClipRecipe(Recipe):
    """`merges`: word pieces of the tokenizer on top of bytes. Sizes are sides in pixels."""

    merges: int = Field(1_024, ge=1)
    text: TransformerSettings = TransformerSettings()
    vision: TransformerSettings = TransformerSettings()
    image_size: int = 128
    patch_size: int = 16


def corpus() -> list[str]:
    """Return captions and requests of some scenes, in English: text in other languages becomes bytes."""
    from training.world import caption_of, sample_scene
    from training.world.requests import request_of

    scenes = [sample_scene(seed) for seed in range(TOKENIZER_SCENES)]
    captions = [caption_of(scene) for scene in scenes]
    return captions + [request_of(scene, seed).text for seed, scene in enumerate(scenes)]


def build(recipe: ClipRecipe, vocabulary: dict[str, int]) -> Any:
    """Return both encoders with random weights from torch's generator."""
    from services.diffusion.libraries import CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModel
    from training.bases.alignment import Aligned
    from training.bases.tokenizer import BEGIN, END

    def sizes(settings: TransformerSettings) -> dict[str, int | str]:
        return {
            "hidden_size": settings.hidden_size,
            "intermediate_size": 4 * settings.hidden_size,
            "num_hidden_layers": settings.layers,
            "num_attention_heads": settings.heads,
            "projection_dim": recipe.text.hidden_size,
            "hidden_act": "quick_gelu",
        }

    text = CLIPTextConfig(
        vocab_size=len(vocabulary),
        max_position_embeddings=77,
        bos_token_id=vocabulary[BEGIN],
        eos_token_id=vocabulary[END],
        pad_token_id=vocabulary[END],
        **sizes(recipe.text),
    )
    vision = CLIPVisionConfig(image_size=recipe.image_size, patch_size=recipe.patch_size, **sizes(recipe.vision))
    return Aligned(CLIPTextModel(text), CLIPVisionModel(vision))


def train(recipe: ClipRecipe) -> Path:
    """Train and write the three parts into the run's folder; return it."""
    return export(recipe, fit_recipe(recipe))


def fit_recipe(recipe: ClipRecipe) -> "Fitted":
    """Write the tokenizer, and train by the recipe."""
    import torch

    from services.diffusion.conditioning.encoder import TokenizerVocabulary
    from services.diffusion.libraries import CLIPTokenizer
    from training.bases.alignment import WorldPairs, collate, loss_of
    from training.bases.tokenizer import write_tokenizer
    from training.runs import fit

    vocabulary = write_tokenizer(recipe.out / "tokenizer", corpus(), recipe.merges)
    tokenizer = TokenizerVocabulary(CLIPTokenizer.from_pretrained(recipe.out / "tokenizer", local_files_only=True))
    torch.manual_seed(recipe.plan.seed)
    pairs = WorldPairs(tokenizer.ids, tokenizer.begin, tokenizer.end, recipe.image_size, recipe.patch_size)
    return fit(
        build(recipe, vocabulary),
        loss_of,
        pairs,
        collate,
        recipe.plan.plan(examples=len(pairs)),
        recipe.out,
        loaders=recipe.loaders,
        tags={"recipe": recipe.model_dump(mode="json")},
    )


def export(recipe: ClipRecipe, fitted: "Fitted") -> Path:
    """Write the two encoders beside the tokenizer; the main process does."""
    from training.bases.export import write_text_encoder, write_vision_tower

    if not fitted.is_main:
        return recipe.out
    model = fitted.averaged() if fitted.ema else fitted.model
    write_text_encoder(recipe.out / "text_encoder", model.text_encoder)
    write_vision_tower(recipe.out / "vision_tower", model.vision_tower)
    return recipe.out


def dry_run(recipe: ClipRecipe) -> None:
    """Take two steps, resume from the first and export."""
    from training.runs.resuming import run_twice

    with tempfile.TemporaryDirectory() as folder:
        dry = recipe.model_copy(update={"out": Path(folder), "plan": recipe.plan.dry()})
        export(dry, run_twice(lambda: fit_recipe(dry), dry.out))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    return run("training.bases.clip", __doc__, ClipRecipe, STAGE, arguments, train=train, dry_run=dry_run)


if __name__ == "__main__":
    sys.exit(main())
