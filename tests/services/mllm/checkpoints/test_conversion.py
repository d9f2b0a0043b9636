"""Conversion: every tensor bit-equal under its new name, once, whatever interrupts it."""

import json
import math
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from services.mllm.checkpoints import CheckpointError, convert, prepare
from services.mllm.checkpoints.conversion import hf_name
from tests.services.mllm.checkpoints.published import (
    HIDDEN,
    MODEL_TYPES,
    SIDE,
    SMALL,
    change_json,
    read_tensors,
    rewrite_tensors,
    tensors_of,
    write_config,
    write_published,
    write_weights,
)

FAMILIES = sorted(MODEL_TYPES)


@pytest.mark.parametrize(
    ("published", "converted"),
    [
        ("model.embed_tokens.weight", "language_model.model.embed_tokens.weight"),
        ("model.layers.11.self_attn.q_proj.bias", "language_model.model.layers.11.self_attn.q_proj.bias"),
        ("model.norm.weight", "language_model.model.norm.weight"),
        ("lm_head.weight", "language_model.lm_head.weight"),
        ("model.mm_projector.0.weight", "multi_modal_projector.linear_1.weight"),
        ("model.mm_projector.2.bias", "multi_modal_projector.linear_2.bias"),
        (
            "model.vision_tower.vision_tower.vision_model.encoder.layers.3.mlp.fc1.weight",
            "vision_tower.vision_model.encoder.layers.3.mlp.fc1.weight",
        ),
    ],
)
def test_names_follow_the_sheet(published: str, converted: str) -> None:
    assert hf_name(published) == converted


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_tensor_is_bit_equal_under_its_new_name(family: str, shards: int, tmp_path: Path) -> None:
    source = write_published(tmp_path / f"llmga-{family.replace('llama2', 'llama-2')}", family, shards=shards)
    facts = convert(source, tmp_path / "target")
    before, after = read_tensors(source), read_tensors(tmp_path / "target")
    assert facts.family == family
    assert set(after) == {hf_name(name) for name in before}
    assert facts.tensors == len(before)
    scaled = {"multi_modal_projector.linear_2.weight", "multi_modal_projector.linear_2.bias"}
    assert set(facts.scaled) == (scaled if family == "gemma" else set())
    for name, tensor in before.items():
        new = after[hf_name(name)]
        if hf_name(name) in facts.scaled:
            expected = tensor.astype(np.float32) * np.float32(math.sqrt(HIDDEN))
            np.testing.assert_array_equal(new, expected)
        else:
            assert new.dtype == tensor.dtype
            assert new.tobytes() == tensor.tobytes()


@pytest.mark.parametrize(
    ("family", "token", "is_new"),
    [
        ("vicuna", "<unk>", False),
        ("llama2", "<unk>", False),
        ("mistral", "<unk>", False),
        ("llama3", "<|reserved_special_token_1|>", False),
        ("phi3", "<|placeholder1|>", False),
        ("gemma", "<unused0>", False),
        ("qwen2", "<image>", True),
    ],
)
def test_the_picture_s_id_is_one_that_the_model_never_writes(
    family: str, token: str, is_new: bool, tmp_path: Path
) -> None:
    source = write_published(tmp_path / f"llmga-{family.replace('llama2', 'llama-2')}", family)
    facts = convert(source, tmp_path / "target")
    published = json.loads((source / "tokenizer.json").read_text())
    config = json.loads((tmp_path / "target" / "config.json").read_text())
    tokenizer = json.loads((tmp_path / "target" / "tokenizer.json").read_text())
    added = {entry["content"]: entry["id"] for entry in tokenizer["added_tokens"]}
    assert facts.image_token == token
    assert added[token] == facts.image_token_id == config["image_token_index"]
    assert facts.image_token_id < config["text_config"]["vocab_size"], "no row is added to the model"
    assert (facts.image_token_id not in published["model"]["vocab"].values()) is is_new


def test_the_configuration_is_what_servers_read(tmp_path: Path) -> None:
    source = write_published(tmp_path / "llmga-mistral", "mistral")
    facts = convert(source, tmp_path / "target")
    config = json.loads((tmp_path / "target" / "config.json").read_text())
    assert config["model_type"] == "llava"
    assert config["vision_feature_layer"] == -2
    assert config["vision_feature_select_strategy"] == "default"
    assert config["text_config"]["model_type"] == "mistral"
    assert config["text_config"]["architectures"] == ["MistralForCausalLM"]
    assert config["text_config"]["rms_norm_eps"] == 1e-6
    assert not [name for name in config["text_config"] if name.startswith(("mm_", "tokenizer_", "use_mm"))]
    assert config["vision_config"]["image_size"] == SIDE == facts.image_size_px
    assert facts.image_tokens == config["image_seq_length"] == 4
    generation = json.loads((tmp_path / "target" / "generation_config.json").read_text())
    assert generation["top_k"] == 20
    assert set(generation["eos_token_id"]) == {1, 2}, "the published one, and </s>"


def test_buffers_are_dropped_and_named_in_the_report(tmp_path: Path) -> None:
    source = write_published(tmp_path / "source")
    rewrite_tensors(
        source / "model.safetensors",
        lambda tensors: tensors.update(
            {
                "model.layers.0.self_attn.rotary_emb.inv_freq": np.zeros(4, np.float32),
                "model.image_newline": np.zeros(HIDDEN, np.float16),
            }
        ),
    )
    facts = convert(source, tmp_path / "target")
    assert set(facts.dropped) == {"model.layers.0.self_attn.rotary_emb.inv_freq", "model.image_newline"}
    assert not [name for name in read_tensors(tmp_path / "target") if "inv_freq" in name or "newline" in name]


def test_a_private_tower_path_is_overridden(tmp_path: Path) -> None:
    source = write_published(tmp_path / "source")
    change_json(source / "config.json", lambda config: config.update(mm_vision_tower="/mnt/private/clip"))
    with pytest.raises(CheckpointError, match="CLIP ViT-L/14 at 336 px, built in"):
        convert(source, tmp_path / "target")  # this tower's copy is another one, and that is said


def test_a_second_conversion_changes_nothing(tmp_path: Path) -> None:
    source = write_published(tmp_path / "source")
    first = convert(source, tmp_path / "target")
    stamp = (tmp_path / "target" / "model.safetensors").stat().st_mtime_ns
    assert convert(source, tmp_path / "target") == first
    assert (tmp_path / "target" / "model.safetensors").stat().st_mtime_ns == stamp


def test_a_target_that_holds_something_else_is_left_alone(tmp_path: Path) -> None:
    source = write_published(tmp_path / "source")
    other = write_published(tmp_path / "other", "gemma")
    convert(other, tmp_path / "target")
    with pytest.raises(CheckpointError, match="holds another checkpoint"):
        convert(source, tmp_path / "target")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(CheckpointError, match=r"llmga\.json"):
        convert(source, tmp_path / "mine")
    assert (tmp_path / "mine" / "letter.txt").read_text() == "dear"


def test_an_interrupted_conversion_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_published(tmp_path / "source", shards=3)
    written: list[str] = []
    rename = os.rename

    def rename_twice(old: Path, new: Path) -> None:
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(Path(new).name)
        rename(old, new)

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", rename_twice)
        with pytest.raises(KeyboardInterrupt):
            convert(source, tmp_path / "target")
    assert not (tmp_path / "target").exists()
    (partial,) = tmp_path.glob(".target-*.partial")
    kept = {path.name: path.stat().st_ino for path in partial.glob("model-*.safetensors")}
    assert sorted(kept) == written
    convert(source, tmp_path / "target")
    now = {path.name: path.stat().st_ino for path in (tmp_path / "target").glob("model-*.safetensors")}
    assert {name: now[name] for name in kept} == kept
    assert set(read_tensors(tmp_path / "target")) == {hf_name(name) for name in read_tensors(source)}
    assert not list(tmp_path.glob(".target-*.partial"))


PEAK = """
import sys
from pathlib import Path
from services.mllm.checkpoints.__main__ import main
status = main(sys.argv[1:])
peak = Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]
sys.stderr.write(f"peak {int(peak) * 1024}")
sys.exit(status)
"""


def _peak_bytes(source: Path, target: Path) -> int:
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(source), str(target)], capture_output=True, text=True, timeout=250, check=False
    )
    assert done.returncode == 0, done.stderr
    return int(done.stderr.rpartition("peak ")[2])


def test_memory_does_not_grow_with_the_checkpoint(tmp_path: Path) -> None:
    small = write_published(tmp_path / "small", shards=3)
    large = write_published(tmp_path / "large", shards=3)
    sizes = replace(SMALL, hidden=256, head=64, inner=65_536)
    rows = json.loads((large / "config.json").read_text())["vocab_size"]
    zeros = {name: np.zeros(shape, np.float16) for name, shape in tensors_of("qwen2", rows, sizes).items()}
    write_weights(large, zeros, shards=3)
    write_config(large, "qwen2", rows, sizes)
    peak = _peak_bytes(small, tmp_path / "small-converted")
    peak_of_large = _peak_bytes(large, tmp_path / "large-converted")
    assert sum(path.stat().st_size for path in (tmp_path / "large-converted").glob("*.safetensors")) > 200_000_000
    assert peak_of_large - peak < 64_000_000  # one buffer of 16 MiB, and what the interpreter does with it


def test_the_cache_is_by_content_and_not_by_path(tmp_path: Path) -> None:
    source = write_published(tmp_path / "llmga-one")
    first = prepare(str(source), tmp_path / "cache")
    shutil.copytree(source, tmp_path / "llmga-two")
    assert prepare(str(tmp_path / "llmga-two"), tmp_path / "cache").folder == first.folder
    rewrite_tensors(tmp_path / "llmga-two" / "model.safetensors", lambda tensors: tensors["model.norm.weight"].fill(0))
    assert prepare(str(tmp_path / "llmga-two"), tmp_path / "cache").folder != first.folder


def test_a_converted_folder_is_served_as_it_is(tmp_path: Path) -> None:
    source = write_published(tmp_path / "source")
    facts = convert(source, tmp_path / "target")
    prepared = prepare(str(tmp_path / "target"), tmp_path / "cache")
    assert (prepared.folder, prepared.facts) == (tmp_path / "target", facts)
    assert not (tmp_path / "cache").exists()


def test_the_command_prints_the_report(tmp_path: Path) -> None:
    source = write_published(tmp_path / "source")

    def run() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "services.mllm.checkpoints", str(source), str(tmp_path / "target")],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    done = run()
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["family"] == "qwen2"
    assert report["tensors"] == len(read_tensors(tmp_path / "target"))
    (source / "evil.py").write_text("")
    refused = run()
    assert refused.returncode == 1
    assert "evil.py" in refused.stderr
    assert "Traceback" not in refused.stderr
