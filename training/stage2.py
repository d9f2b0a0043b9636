"""Stage 2: a Stable Diffusion's UNet learns the long prompts that the language model writes (LLMGA.md §7.3).

    accelerate launch --mixed_precision bf16 --multi_gpu -m training.stage2 \\
        --recipe training/recipes/stage2-sd15-t2i.yaml

SD1.5 and SDXL, text-to-image and nine-channel inpainting. Only the UNet learns; its moving average is exported, in
diffusers layout, to the run's `checkpoint/`, which serving takes as it is. On a CPU, the tiny one from nothing:

    python -m training.stage2 --recipe training/recipes/tiny-sd15-base.yaml
    python -m training.stage2 --recipe training/recipes/tiny-sd15.yaml

`--dry-run` shows in seconds that everything fits together. Start it again and it goes on where it was.
"""

import logging
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.recipes.command import options
from training.recipes.stage2 import JsonPictures, Stage2Recipe, WorldPictures

if TYPE_CHECKING:
    import torch

    from training.checkpoints import Parts
    from training.data.captioned import Captioned, Source
    from training.runs import Fitted

STAGE = "stage2"
CHECKPOINT = "checkpoint"  # below the run's folder: what serving takes
PUBLISHED_SIZE = 512  # pixels; the published masks are of this size
DRY_SIZE = 64

_log = logging.getLogger("llmga.training")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    given = options("training.stage2", __doc__, Stage2Recipe, STAGE, arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    if given.dry_run:
        with tempfile.TemporaryDirectory() as folder:
            dry_run(given.recipe, Path(folder))
        return 0
    run(given.recipe)
    return 0


def run(recipe: Stage2Recipe) -> Path:
    """Train and write the checkpoint; return its folder."""
    parts = open_base(recipe)
    return export(recipe, parts, fit_recipe(recipe, parts))


def open_base(recipe: Stage2Recipe) -> "Parts":
    """Load the base, which is made first where it is missing and the recipe says of what."""
    from training.bases.unet import assemble
    from training.checkpoints import open_checkpoint
    from training.runs.fitting import accelerator_for

    accelerator = accelerator_for(recipe.plan.plan(examples=recipe.plan.global_batch))
    with accelerator.main_process_first():
        if recipe.fresh is not None and not recipe.base.exists():
            assemble(recipe.base, recipe.fresh, seed=recipe.plan.seed)
    return open_checkpoint(recipe.base, recipe.kind, inpainting=recipe.inpainting)


def fit_recipe(recipe: Stage2Recipe, parts: "Parts") -> "Fitted":
    """Train the base's UNet by the recipe."""
    import torch

    from training.data.captioned import Collate
    from training.denoising import Denoising, Schedule
    from training.runs import fit
    from training.runs.fitting import accelerator_for

    examples = _examples(recipe, parts)
    plan = recipe.plan.plan(examples=len(examples))
    accelerator = accelerator_for(plan)
    device = accelerator.device
    lower = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    _move(parts.vae, device, lower[plan.precision if recipe.vae_precision == "as_plan" else "no"])
    for encoder in (parts.text_encoder, parts.second):
        if encoder is not None:
            _move(encoder, device, lower[plan.precision])
    if recipe.gradient_checkpointing:
        parts.unet.enable_gradient_checkpointing()
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = True
    if recipe.precomputed is not None:
        with accelerator.main_process_first():  # the others find what it has made
            examples = _with_latents(recipe, examples, parts, device)
    schedule = Schedule.of(parts.scheduler)
    denoising = Denoising(schedule, parts.vae, parts.text_encoder, parts.second, recipe.snr_gamma)
    collate = Collate(
        recipe.size,
        len(schedule.alphas_cumprod),
        recipe.noise_offset,
        recipe.input_perturbation,
        recipe.timestep_shift,
    )
    fitted = fit(
        parts.unet,
        denoising,
        examples,
        collate,
        plan,
        recipe.out,
        accelerator=accelerator,
        loaders=recipe.loaders,
        tags={"recipe": recipe.model_dump(mode="json")},
    )
    if examples.counts:
        _log.info("pictures: %s", ", ".join(f"{count} {what}" for what, count in examples.counts.items()))
    return fitted


def _move(part: Any, device: "torch.device", dtype: "torch.dtype") -> None:
    part.to(device)
    if part.dtype is not dtype:  # libraries warn of every cast, also of one that changes nothing
        part.to(dtype)


def _examples(recipe: Stage2Recipe, parts: "Parts") -> "Captioned":
    from dataclasses import replace

    from training.data.captioned import Captioned
    from training.data.masks import SD_STAGE2

    return Captioned(
        source=_source(recipe),
        vocabulary=parts.vocabulary,
        second=parts.second_vocabulary,
        size=recipe.size,
        random_crop=recipe.crop == "random",
        flip=recipe.flip,
        empty_prompts=recipe.empty_prompts,
        masks=replace(SD_STAGE2, pixel_scale=recipe.mask_scale) if recipe.inpainting else None,
        on_error=recipe.on_error,
    )


def _source(recipe: Stage2Recipe) -> "Source":
    from training.data.captioned import Drawn, Published
    from training.data.formats import read_items

    data = recipe.data
    if isinstance(data, WorldPictures):
        return Drawn(data.scenes, recipe.size, short=data.captions == "short")
    assert isinstance(data, JsonPictures)
    items = read_items(data.json_file, "similar_image", images=data.images, on_error=recipe.on_error)
    _log.info("%s", items.counts)
    return Published(items)


def _with_latents(recipe: Stage2Recipe, examples: "Captioned", parts: "Parts", device: "torch.device") -> "Captioned":
    from dataclasses import replace

    from training.data.captioned import Published
    from training.data.latents import hash_of, precompute

    assert recipe.precomputed is not None
    data = recipe.data.model_dump(mode="json", exclude={"captions", "scenes"})
    if isinstance(examples.source, Published):
        data["pictures"] = examples.source.digest()
    latents = precompute(
        recipe.precomputed,
        len(examples),
        lambda position: examples.cropped(position, 0).pixels,
        parts.vae,
        device,
        made_from=f"{type(recipe.data).__name__} {data} {recipe.size} {hash_of(parts.vae)}",
    )
    return replace(examples, latents=latents)


def dry_run(recipe: Stage2Recipe, folder: Path) -> Path:
    """Take two steps on a mini checkpoint of the recipe's kind and on drawn scenes, resume from the first, export.

    Returns the exported checkpoint below `folder`.
    """
    from training.minis.diffusion import build_sd15, build_sdxl
    from training.runs.resuming import run_twice

    (build_sdxl if recipe.kind == "sdxl" else build_sd15)(folder / "base")
    changes: dict[str, Any] = {
        "base": folder / "base",
        "fresh": None,
        "out": folder / "run",
        "data": WorldPictures(scenes=4),
        "size": DRY_SIZE,
        "flip": False,
        "mask_scale": DRY_SIZE / PUBLISHED_SIZE,
        "plan": recipe.plan.dry(),
    }
    if recipe.precomputed is not None:
        changes["precomputed"] = folder / "latents"
    dry = recipe.model_copy(update=changes)
    fitted = run_twice(lambda: fit_recipe(dry, open_base(dry)), dry.out)
    return export(dry, open_base(dry), fitted)


def export(recipe: Stage2Recipe, parts: "Parts", fitted: "Fitted") -> Path:
    """Write `checkpoint/` with the trained UNet, its average where there is one; return it. The main process does."""
    import torch

    from training.checkpoints import write_checkpoint

    target = recipe.out / CHECKPOINT
    if not fitted.is_main:
        return target
    unet = fitted.model if fitted.ema is None else fitted.averaged()
    write_checkpoint(target, parts, unet, getattr(torch, recipe.saved_as))
    return target


if __name__ == "__main__":
    sys.exit(main())
