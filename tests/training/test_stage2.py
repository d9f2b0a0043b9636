"""Stage 2 from its recipes to what serving loads."""

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from services.diffusion.batching import Buckets
from services.diffusion.checkpoints import inspect
from services.diffusion.loading import load
from tests.training.recipes import LAUNCHERS, assert_two_equal_one, recipes_of, run_in_two_processes
from training import stage2
from training.checkpoints import CheckpointError, open_checkpoint, widened
from training.data.formats import DataError
from training.data.latents import LatentsError, precompute
from training.minis.diffusion import build_sd15, build_sdxl
from training.recipes.recipe import FOLDER, RecipeError, load_recipe
from training.recipes.stage2 import Stage2Recipe

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
PUBLISHED = [f"stage2-{kind}-{task}" for kind in ("sd15", "sdxl") for task in ("t2i", "inpaint")]


def recipe_of(name: str, *changes: str) -> Stage2Recipe:
    return load_recipe(FOLDER / f"{name}.yaml", Stage2Recipe, changes)


@pytest.fixture(scope="module")
def mini(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("minis") / "sd15"
    build_sd15(folder)
    return folder


@pytest.mark.parametrize("name", recipes_of("stage2"))
def test_dry_run_of_every_recipe_trains_resumes_and_exports(name: str, tmp_path: Path) -> None:
    recipe = recipe_of(name)
    checkpoint = stage2.dry_run(recipe, tmp_path)
    steps = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert steps == ["step-00000001", "step-00000002"]
    index = json.loads((checkpoint / "model_index.json").read_text())
    assert ("Inpaint" in index["_class_name"], "XL" in index["_class_name"]) == (
        recipe.inpainting,
        recipe.kind == "sdxl",
    )
    before, after = load_file(tmp_path / "base" / WEIGHTS), load_file(checkpoint / WEIGHTS)
    assert after["conv_in.weight"].shape[1] == (9 if recipe.inpainting else 4)
    assert {tensor.dtype for tensor in after.values()} == {getattr(torch, recipe.saved_as)}
    name = "conv_out.weight"
    assert not torch.equal(before[name].to(after[name].dtype), after[name])
    for part in ("vae/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"):
        frozen, kept = load_file(tmp_path / "base" / part), load_file(checkpoint / part)
        assert all(torch.equal(frozen[key].to(kept[key].dtype), kept[key]) for key in frozen), "only the UNet learns"


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_recipes_have_the_numbers_of_llmga(name: str) -> None:
    recipe = recipe_of(name)
    is_sdxl = "sdxl" in name
    plan = recipe.plan
    assert (recipe.size, plan.global_batch, plan.micro_batch) == ((1024, 128, 4) if is_sdxl else (512, 256, 32))
    assert (plan.steps, plan.learning_rate, plan.schedule, plan.warmup_steps) == (50_000, 2e-5, "constant", 0)
    assert (plan.betas, plan.weight_decay, plan.eps, plan.max_grad_norm) == ((0.9, 0.999), 0.01, 1e-8, 1.0)
    assert (plan.precision, plan.ema_decay, plan.checkpoint_every, plan.keep_checkpoints) == ("bf16", 0.9999, 2000, 2)
    assert (recipe.snr_gamma, recipe.noise_offset, recipe.input_perturbation) == (None, 0, 0)
    assert recipe.empty_prompts == (0.05 if recipe.inpainting else 0)
    assert recipe.vae_precision == ("no" if is_sdxl else "as_plan")


def test_what_training_writes_is_loaded_by_the_service(mini: Path, tmp_path: Path) -> None:
    checkpoint = stage2.dry_run(recipe_of("tiny-sd15"), tmp_path)
    model = load(
        "trained", inspect(checkpoint), device=torch.device("cpu"), dtype=torch.float32, buckets=Buckets.up_to(4)
    )
    assert model.files.kind == "sd15"
    assert model.files.serving == inspect(mini).serving


def test_a_run_on_drawn_scenes_learns(mini: Path, tmp_path: Path) -> None:
    recipe = recipe_of(
        "tiny-sd15",
        f"base={mini}",
        f"out={tmp_path / 'run'}",
        f"precomputed={tmp_path / 'latents'}",
        "data.scenes=32",
        "plan.steps=40",
        "plan.global_batch=8",
        "plan.micro_batch=8",
        "plan.warmup_steps=5",
        "plan.log_every=10",
        "plan.learning_rate=2e-3",
    )
    stage2.fit_recipe(recipe, stage2.open_base(recipe))
    lines = [json.loads(line) for line in (tmp_path / "run" / "losses.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines]
    assert np.mean(losses[-2:]) < 0.8 * losses[0]


@pytest.mark.parametrize("precomputed", [False, True])
def test_bad_pictures_stop_a_run_or_are_left_out_and_counted_at_its_end(
    mini: Path, tmp_path: Path, precomputed: bool, caplog: pytest.LogCaptureFixture
) -> None:
    items = [{"image": f"{number}.png", "caption": f"Picture {number}."} for number in range(4)]
    for item in items[:2]:
        Image.new("RGB", (64, 64), (90,) * 3).save(tmp_path / item["image"])
    (tmp_path / "1.png").write_bytes(b"no picture")
    (tmp_path / "3.png").write_bytes(b"no picture")
    (tmp_path / "train.json").write_text(json.dumps(items), encoding="utf-8")
    changes = [f"base={mini}", f"data={{json: {tmp_path / 'train.json'}, images: {tmp_path}}}", "size=64"]
    changes += ["plan.steps=3", "plan.global_batch=3", "plan.micro_batch=3", "plan.warmup_steps=0"]
    changes += [f"precomputed={tmp_path / 'latents' if precomputed else 'null'}", f"out={tmp_path / 'run'}"]
    with pytest.raises(DataError, match=r"train\.json: item 2 \(line 1\): there is no picture .*2\.png"):
        stage2.run(recipe_of("tiny-sd15", *changes))
    Image.new("RGB", (64, 64)).save(tmp_path / "2.png")
    with pytest.raises(DataError, match=r"[13]\.png: The data are not a PNG"):
        stage2.run(recipe_of("tiny-sd15", *changes))
    (tmp_path / "2.png").unlink()
    shutil.rmtree(tmp_path / "latents", ignore_errors=True)  # they are of other pictures now
    with caplog.at_level(logging.INFO, logger="llmga.training"):
        stage2.run(recipe_of("tiny-sd15", *changes, "on_error=skip"))
    assert "train.json: 3 items, 1 skipped (1 without their picture)" in caplog.text
    # In each of three passes over three pictures: the second alone, and both behind each other.
    assert caplog.messages[-1] == "pictures: 9 skipped"


def test_latents_are_of_the_pictures_that_are_used_now(mini: Path, tmp_path: Path) -> None:
    for number in range(3):
        Image.new("RGB", (64, 64), (90 * number,) * 3).save(tmp_path / f"{number}.png")
    items = [{"image": f"{number}.png", "caption": "A picture."} for number in range(3)]
    (tmp_path / "train.json").write_text(json.dumps(items), encoding="utf-8")
    changes = [f"base={mini}", f"data={{json: {tmp_path / 'train.json'}, images: {tmp_path}}}", "size=64"]
    changes += ["plan.steps=1", "plan.global_batch=1", "plan.micro_batch=1", "on_error=skip"]
    changes += [f"precomputed={tmp_path / 'latents'}"]
    (tmp_path / "0.png").rename(tmp_path / "lost")
    stage2.run(recipe_of("tiny-sd15", *changes, f"out={tmp_path / 'one'}"))
    (tmp_path / "lost").rename(tmp_path / "0.png")
    with pytest.raises(LatentsError, match="latents of something else"):
        stage2.run(recipe_of("tiny-sd15", *changes, f"out={tmp_path / 'other'}"))


def test_a_widened_unet_does_what_it_did_and_can_learn_the_mask(mini: Path) -> None:
    unet = open_checkpoint(mini, "sd15", inpainting=False).unet
    wide = widened(unet).eval()
    sample, known, embeds = torch.randn(1, 4, 16, 16), torch.randn(1, 5, 16, 16), torch.randn(1, 77, 96)
    with torch.no_grad():
        before = unet.eval()(sample, 10, embeds).sample
        after = wide(torch.cat([sample, known], 1), 10, embeds).sample
    torch.testing.assert_close(after, before)
    wide(torch.cat([sample, known], 1), 10, embeds).sample.sum().backward()
    assert wide.conv_in.weight.grad[:, 4:].abs().max() > 0


def test_checkpoints_of_another_kind_and_incomplete_ones_are_named(mini: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="text_encoder_2"):
        open_checkpoint(mini, "sdxl", inpainting=False)
    build_sdxl(tmp_path / "sdxl")
    with pytest.raises(CheckpointError, match="kind sdxl"):
        open_checkpoint(tmp_path / "sdxl", "sd15", inpainting=False)
    with pytest.raises(CheckpointError, match="missing"):
        open_checkpoint(tmp_path, "sd15", inpainting=False)


@pytest.mark.parametrize(
    "change", ["flip=true", "crop=random", "size=100", "kind=sdxl3", "snr_gamma=0", "empty_prompts=1", "stepps=3"]
)
def test_recipes_that_make_no_sense_are_refused(change: str) -> None:
    with pytest.raises(RecipeError, match="tiny-sd15"):
        recipe_of("tiny-sd15", change)


def test_latents_are_made_once_and_those_of_something_else_refused(mini: Path, tmp_path: Path) -> None:
    vae = open_checkpoint(mini, "sd15", inpainting=False).vae
    asked: list[int] = []

    def picture(position: int) -> np.ndarray:
        asked.append(position)
        return np.full((32, 32, 3), 40 * position, np.uint8)

    def made(count: int = 3, made_from: str = "gray") -> torch.Tensor:
        latents = precompute(tmp_path / "latents", count, picture, vae, torch.device("cpu"), made_from)
        return torch.stack([latents(position) for position in range(len(latents))])

    first = made()
    assert (first.shape, first.dtype, asked) == ((3, 2, 4, 4, 4), torch.float16, [0, 1, 2])
    assert not torch.equal(first[0], first[1])
    assert torch.equal(made(), first)
    assert asked == [0, 1, 2]
    assert torch.equal(made(count=2), first[:2])
    assert asked == [0, 1, 2]
    torch.testing.assert_close(made(count=5)[:3], first)
    with pytest.raises(LatentsError):
        made(made_from="red")


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_two_processes_learn_what_one_learns(launcher: str, mini: Path, tmp_path: Path) -> None:
    changes = [f"base={mini}", "data.scenes=8", "size=64", "precomputed=null", "plan.steps=3"]
    changes += ["plan.global_batch=4", "plan.micro_batch=2", "plan.warmup_steps=0", "plan.log_every=1"]
    arguments = ["--recipe", str(FOLDER / "tiny-sd15-inpaint.yaml"), "--set", *changes]
    assert stage2.main([*arguments, "--out", str(tmp_path / "one")]) == 0
    run_in_two_processes(launcher, tmp_path, "training.stage2", *arguments, "--out", str(tmp_path / "two"))
    assert_two_equal_one(tmp_path / "one", tmp_path / "two", 3)
