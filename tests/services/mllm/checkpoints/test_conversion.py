"""Conversion: every tensor bit-equal under its new name, once, whatever interrupts it."""

import json
import math
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from services.mllm.checkpoints import CheckpointError, convert, prepare
from services.mllm.checkpoints.conversion import hf_name
from tests.services.mllm.checkpoints.published import (
    HIDDEN,
    MODEL_TYPES,
    SIDE,
    SMALL,
    TOWER,
    change_json,
    read_tensors,
    rewrite_tensors,
    tensors_of,
    write_config,
    write_json,
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


@pytest.mark.parametrize("family", FAMILIES)
def test_every_row_of_the_model_has_a_token_and_those_added_are_left_out_of_texts(family: str, tmp_path: Path) -> None:
    source = write_published(tmp_path / f"llmga-{family.replace('llama2', 'llama-2')}", family)
    convert(source, tmp_path / "target")
    config = json.loads((tmp_path / "target" / "config.json").read_text())
    tokenizer = Tokenizer.from_file(str(tmp_path / "target" / "tokenizer.json"))
    assert sorted(tokenizer.get_vocab().values()) == list(range(config["text_config"]["vocab_size"]))
    last = config["text_config"]["vocab_size"] - 1
    if family in {"qwen2", "phi3"}:
        assert tokenizer.id_to_token(last) == f"<|spare_row_{last}|>"
        assert tokenizer.decode([last], skip_special_tokens=True) == ""


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
                TOWER + "embeddings.position_ids": np.arange(5),
            }
        ),
    )
    facts = convert(source, tmp_path / "target")
    assert set(facts.dropped) == {
        "model.layers.0.self_attn.rotary_emb.inv_freq",
        "model.image_newline",
        TOWER + "embeddings.position_ids",
    }
    assert not [name for name in read_tensors(tmp_path / "target") if "inv_freq" in name or "newline" in name]


def write_clip(folder: Path) -> Path:
    """Write a whole CLIP model of the small tower's sizes, float32: what `openai/clip-…` is."""
    folder.mkdir()
    rng = np.random.default_rng(9)
    tensors: dict[str, np.ndarray[Any, np.dtype[Any]]] = {
        "vision_model." + name.removeprefix(TOWER): rng.standard_normal(shape).astype(np.float32)
        for name, shape in tensors_of("qwen2", 9).items()
        if name.startswith(TOWER)
    }
    tensors["vision_model.embeddings.position_ids"] = np.arange(5)
    tensors["text_model.final_layer_norm.weight"] = np.ones(7, np.float32)
    write_weights(folder, tensors)
    vision = {
        "hidden_size": SMALL.tower_hidden,
        "image_size": SIDE,
        "intermediate_size": SMALL.tower_inner,
        "num_attention_heads": 2,
        "num_hidden_layers": SMALL.tower_layers,
        "patch_size": SMALL.patch,
    }
    write_json(folder / "config.json", {"model_type": "clip", "vision_config": vision})
    return folder


@pytest.mark.parametrize("has_copy", [True, False])
def test_a_tower_that_is_given_takes_the_place_of_the_copy(has_copy: bool, tmp_path: Path) -> None:
    source, clip = write_published(tmp_path / "source"), write_clip(tmp_path / "clip")
    if not has_copy:
        rewrite_tensors(
            source / "model.safetensors",
            lambda tensors: [tensors.pop(name) for name in list(tensors) if name.startswith(TOWER)],
        )
        with pytest.raises(CheckpointError, match="tensors are missing"):
            convert(source, tmp_path / "without")
    facts = convert(source, tmp_path / "target", tower=clip)
    before, after, given = read_tensors(source), read_tensors(tmp_path / "target"), read_tensors(clip)
    own = {name for name in before if name.startswith(TOWER)}
    assert set(facts.dropped) == own
    assert facts.tower == "clip, given"
    seen = {name: tensor for name, tensor in after.items() if name.startswith("vision_tower.")}
    assert len(seen) == len(given) - 2, "all of it but the positions and the text part"
    for name, tensor in seen.items():
        np.testing.assert_array_equal(tensor, given[name.removeprefix("vision_tower.")])
    assert set(after) - set(seen) == {hf_name(name) for name in before} - {hf_name(name) for name in own}
    assert prepare(str(source), tmp_path / "cache", tower=str(clip)).facts.tower == "clip, given"
    with pytest.raises(CheckpointError, match="LLMGA_MLLM__TOWER"):
        prepare(str(tmp_path / "target"), tmp_path / "cache", tower=str(clip))


def test_another_tower_is_another_conversion(tmp_path: Path) -> None:
    source, clip = write_published(tmp_path / "source"), write_clip(tmp_path / "clip")
    first = prepare(str(source), tmp_path / "cache", tower=str(clip))
    rewrite_tensors(clip / "model.safetensors", lambda tensors: tensors["vision_model.post_layernorm.bias"].fill(0))
    folders = {first.folder, prepare(str(source), tmp_path / "cache", tower=str(clip)).folder}
    assert len(folders | {prepare(str(source), tmp_path / "cache").folder}) == 3


@pytest.mark.parametrize("change", ["missing", "shape", "integer", "pickle"])
def test_a_tower_that_does_not_fit_is_refused(change: str, tmp_path: Path) -> None:
    source, clip = write_published(tmp_path / "source"), write_clip(tmp_path / "clip")
    name, weights = "vision_model.post_layernorm.bias", clip / "model.safetensors"
    if change == "pickle":
        weights.rename(clip / "pytorch_model.bin")
    else:
        new: dict[str, dict[str, Any]] = {
            "missing": {},
            "shape": {name: np.zeros(3, np.float32)},
            "integer": {name: np.zeros(16, np.int64)},
        }
        rewrite_tensors(weights, lambda tensors: (tensors.pop(name), tensors.update(new[change])))
    with pytest.raises(CheckpointError, match=r"model\.safetensors: (there are no|tensor)"):
        convert(source, tmp_path / "target", tower=clip)


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


def test_what_a_checkpoint_says_of_its_training_is_a_fact(tmp_path: Path) -> None:
    source = write_published(tmp_path / "llmga")
    silent = prepare(str(source), tmp_path / "cache")
    assert not silent.facts.tells_changes
    (source / "serving.json").write_text('{"tells_changes": true}')
    telling = prepare(str(source), tmp_path / "cache")
    assert telling.facts.tells_changes
    assert telling.folder != silent.folder, "another fact, another conversion"


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
