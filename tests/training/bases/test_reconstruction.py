"""The tiny autoencoder: its latents are standardized without changing a picture, and it learns."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.training.recipes import recipes_of
from training.bases.reconstruction import moments_of, standardize, to_unit
from training.bases.vae import VaeRecipe, build, dry_run, train
from training.recipes.recipe import FOLDER, load_recipe
from training.world import draw, sample_scene

WEIGHTS = "diffusion_pytorch_model.safetensors"


def recipe_of(*changes: str, name: str = "tiny-vae") -> VaeRecipe:
    return load_recipe(FOLDER / f"{name}.yaml", VaeRecipe, changes)


def test_standardized_latents_have_unit_variance_and_pictures_stay() -> None:
    torch.manual_seed(0)
    vae = build(recipe_of()).eval()
    torch.nn.init.normal_(vae.quant_conv.weight, std=0.7)  # latents with a mean and a size of their own
    pictures = [draw(sample_scene(seed)) for seed in range(12)]
    batch = to_unit(torch.from_numpy(np.stack(pictures)))
    with torch.no_grad():
        before = vae.encode(batch).latent_dist
        picture = vae.decode(before.mean).sample
        spread = before.logvar - 2 * before.mean.std((0, 2, 3), correction=0).log()[:, None, None]
    standardize(vae, moments_of(vae, pictures))
    with torch.no_grad():
        after = vae.encode(batch).latent_dist
        torch.testing.assert_close(vae.decode(after.mean).sample, picture, atol=1e-4, rtol=1e-4)
        latents = after.mean * vae.config.scaling_factor
    torch.testing.assert_close(latents.mean((0, 2, 3)), torch.zeros(4), atol=1e-3, rtol=0)
    torch.testing.assert_close(latents.std((0, 2, 3), correction=0), torch.ones(4), atol=1e-3, rtol=0)
    scale = 2 * torch.tensor(vae.config.scaling_factor).log()
    torch.testing.assert_close(after.logvar + scale, spread, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("name", recipes_of("vae"))
def test_the_dry_run_of_each_recipe_leaves_nothing_behind(tmp_path: Path, name: str) -> None:
    dry_run(recipe_of(f"out={tmp_path / 'run'}", name=name))
    assert not list(tmp_path.iterdir())


def test_a_decoder_that_goes_on_learning_leaves_the_latents_as_they_were(tmp_path: Path) -> None:
    base = build(recipe_of())
    base.save_pretrained(tmp_path / "base", safe_serialization=True)
    plan = ("plan.steps=2", "plan.global_batch=2", "plan.micro_batch=2", "plan.ema_decay=0.5")
    out, given = f"out={tmp_path / 'run'}", f"base={tmp_path / 'base'}"
    after = load_file(train(recipe_of(out, given, *plan, name="tiny-vae-decoder")) / WEIGHTS)
    before = load_file(tmp_path / "base" / WEIGHTS)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all(name.startswith(("decoder.", "post_quant_conv.")) for name in changed)


def test_it_learns(tmp_path: Path) -> None:
    plan = ("plan.steps=40", "plan.global_batch=4", "plan.micro_batch=4", "plan.log_every=5", "plan.warmup_steps=5")
    folder = train(recipe_of(f"out={tmp_path}", "moment_pictures=16", *plan))
    losses = [json.loads(line)["l1"] for line in (tmp_path / "losses.jsonl").read_text().splitlines()]
    assert np.mean(losses[-2:]) < 0.75 * losses[0]
    assert (folder / "diffusion_pytorch_model.safetensors").is_file()
