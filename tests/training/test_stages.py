"""Projector pretraining and stage 1, from their recipes to what serving's converter takes."""

import json
import logging
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from services.mllm.checkpoints import convert
from tests.training.recipes import LAUNCHERS, ROOT, assert_two_equal_one, recipes_of, run_in_two_processes, write_mini
from training import pretrain, stage1
from training.data.formats import DataError
from training.llava import read_projector
from training.recipes.recipe import FOLDER

STAGES = {"pretrain": pretrain.main, "stage1": stage1.main}
PUBLISHED = ("vicuna-7b", "mistral-7b", "llama3-8b", "qwen2-0.5b", "qwen2-1.5b", "qwen2-7b", "phi3-3b", "gemma-2b")


@pytest.mark.parametrize("name", recipes_of("pretrain", "stage1"))
def test_dry_run_of_every_recipe_trains_resumes_and_exports(name: str, caplog: pytest.LogCaptureFixture) -> None:
    stage = "pretrain" if "pretrain" in name else "stage1"
    with caplog.at_level(logging.INFO, logger="llmga.training"):
        assert STAGES[stage](["--recipe", str(FOLDER / f"{name}.yaml"), "--dry-run"]) == 0
    assert "3 items" in caplog.text


def test_every_published_model_has_both_recipes() -> None:
    names = recipes_of("pretrain", "stage1")
    assert {f"{stage}-{model}" for stage in STAGES for model in PUBLISHED} <= set(names)


def test_pretraining_changes_the_projector_alone_and_stage_1_begins_with_it(tmp_path: Path) -> None:
    recipe = write_mini(tmp_path, stage="pretrain", shaping="as_is", out=str(tmp_path / "projector"))
    assert pretrain.main(["--recipe", str(recipe)]) == 0
    learned = load_file(tmp_path / "projector" / "checkpoints" / "step-00000003" / "model.safetensors")
    assert {name.partition(".")[0] for name in learned} == {"projector"}
    file = tmp_path / "projector" / "mm_projector.safetensors"
    assert load_file(file).keys() == {
        f"model.mm_projector.{layer}.{kind}" for layer in "02" for kind in ("weight", "bias")
    }

    recipe = write_mini(
        tmp_path, projector=str(file), plan={"steps": 1, "global_batch": 2, "micro_batch": 2, "learning_rate": 1e-9}
    )
    assert stage1.main(["--recipe", str(recipe), "--set", "saved_as=float32"]) == 0
    trained = load_file(tmp_path / "run" / "checkpoint" / "model.safetensors")
    for name, tensor in read_projector(file).items():
        torch.testing.assert_close(trained[f"model.mm_projector.{name}"], tensor, rtol=0, atol=1e-6)


def test_stage_1_teaches_the_language_model_and_leaves_the_tower(tmp_path: Path) -> None:
    recipe = write_mini(tmp_path)
    steps = ["--set", "plan.steps=12", "--set", "plan.learning_rate=0.01", "--set", "saved_as=float32"]
    assert stage1.main(["--recipe", str(recipe), *steps]) == 0
    losses = [json.loads(line)["loss"] for line in (tmp_path / "run" / "losses.jsonl").read_text().splitlines()]
    assert len(losses) == 12
    assert losses[-1] < losses[0] - 1
    exported = load_file(tmp_path / "run" / "checkpoint" / "model.safetensors")
    for name, tensor in load_file(tmp_path / "clip-mini" / "model.safetensors").items():
        assert torch.equal(exported[f"model.vision_tower.vision_tower.{name}"], tensor)
    base = load_file(tmp_path / "base" / "model.safetensors")
    assert all(not torch.equal(exported[name], tensor) for name, tensor in base.items() if name.endswith("proj.weight"))
    meta = json.loads((tmp_path / "run" / "checkpoint" / "meta.json").read_text())
    assert meta["tags"] == {
        "stage": "stage1",
        "recipe": "recipe.yaml",
        "family": "qwen2",
        "base": str(tmp_path / "base"),
    }


@pytest.mark.parametrize("bits", [None, 8])
def test_adapters_leave_the_base_and_are_merged_into_its_own_weights(tmp_path: Path, bits: int | None) -> None:
    adapter = {"rank": 4, "alpha": 8, "bits": bits}
    recipe = write_mini(tmp_path, "vicuna", adapter=adapter, saved_as="float32")
    assert stage1.main(["--recipe", str(recipe), "--set", "plan.learning_rate=0.01"]) == 0
    saved = load_file(tmp_path / "run" / "checkpoints" / "step-00000003" / "model.safetensors")
    assert {"projector"} == {name.partition(".")[0] for name in saved if ".lora_" not in name}
    exported = load_file(tmp_path / "run" / "checkpoint" / "model.safetensors")
    checked = 0
    for name, tensor in load_file(tmp_path / "base" / "model.safetensors").items():
        layer = f"language_model.{name.removesuffix('.weight')}"
        if f"{layer}.lora_A.default.weight" not in saved:
            assert torch.equal(exported[name], tensor), name
            continue
        low, high = saved[f"{layer}.lora_A.default.weight"], saved[f"{layer}.lora_B.default.weight"]
        torch.testing.assert_close(exported[name], tensor + 2.0 * (high @ low))  # alpha / rank
        checked += 1
    assert checked == 2 * 7
    assert convert(tmp_path / "run" / "checkpoint", tmp_path / "served").family == "vicuna"


@pytest.mark.parametrize("stage", sorted(STAGES))
def test_bad_data_stop_a_run_or_are_left_out_and_counted_at_its_end(
    stage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_mini(tmp_path, stage=stage)
    arguments, data = ["--recipe", str(path)], tmp_path / "data"
    texts = data / "text_to_image.json"
    texts.write_text(json.dumps([*json.loads(texts.read_text()), {"caption": "A cat."}], indent=1))
    (data / "images" / "1.png").write_bytes(b"no picture")
    (data / "images" / "2.png").unlink()

    with pytest.raises(DataError, match=r"text_to_image\.json: item 3 \(line \d+\): 'ori_caption' is missing"):
        STAGES[stage](arguments)
    texts.write_text(json.dumps(json.loads(texts.read_text())[:3]))
    with pytest.raises(DataError, match=r"similar_image\.json: item 2 \(line \d+\): there is no picture .*2\.png"):
        STAGES[stage](arguments)
    shutil.copyfile(data / "images" / "0.png", data / "images" / "2.png")
    with pytest.raises(DataError, match=r"1\.png: The data are not a PNG, JPEG or WebP file"):
        STAGES[stage](arguments)

    (data / "images" / "2.png").unlink()
    with caplog.at_level(logging.INFO, logger="llmga.training"):
        assert STAGES[stage]([*arguments, "--set", "on_error=skip"]) == 0
    # Twelve items are left, of which each is visited once; three of them have the damaged picture.
    for kind in ("similar_image", "inpainting", "dialogue"):
        assert f"{kind}.json: 2 items, 1 skipped (1 without their picture)" in caplog.text
    assert caplog.messages[-1] == "conversations: 3 skipped"


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_two_processes_learn_what_one_learns(launcher: str, tmp_path: Path) -> None:
    recipe = write_mini(tmp_path)
    assert stage1.main(["--recipe", str(recipe), "--out", str(tmp_path / "one")]) == 0
    run_in_two_processes(launcher, tmp_path, "training.stage1", "--recipe", str(recipe), "--out", str(tmp_path / "two"))
    assert_two_equal_one(tmp_path / "one", tmp_path / "two", 3)


@pytest.mark.parametrize("module", ["training.pretrain", "training.stage1"])
def test_help_comes_without_torch(module: str) -> None:
    code = f"import sys, {module} as stage\ntry: stage.main(['--help'])\nfinally: assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "--dry-run" in done.stdout


def test_wrong_recipe_ends_the_command_with_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = write_mini(tmp_path)
    with pytest.raises(SystemExit) as ended:
        stage1.main(["--recipe", str(recipe), "--set", "plan.learnin_rate=1"])
    assert ended.value.code == 2
    assert "plan.learnin_rate: Extra inputs are not permitted" in capsys.readouterr().err
