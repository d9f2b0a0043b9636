"""The mini language model is what LLMGA.md §1 says of the published ones, in small."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer

from training.minis.mllm import TOWER, build_mllm


@pytest.fixture(scope="module")
def mini(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("minis") / "mllm"
    build_mllm(folder)
    return folder


def test_names_are_the_published_ones_and_the_head_is_stored_once(mini: Path) -> None:
    names = set(load_file(mini / "model.safetensors"))
    assert {"model.embed_tokens.weight", "model.norm.weight", "model.mm_projector.2.bias"} <= names
    assert "model.vision_tower.vision_tower.vision_model.embeddings.class_embedding" in names
    assert "lm_head.weight" not in names


def test_it_has_between_one_and_three_million_parameters_in_bfloat16(mini: Path) -> None:
    tensors = load_file(mini / "model.safetensors")
    assert 1_000_000 <= sum(tensor.numel() for tensor in tensors.values()) <= 3_000_000
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}


def test_the_embedding_has_rows_beyond_the_last_token(mini: Path) -> None:
    config = json.loads((mini / "config.json").read_text())
    tokens = Tokenizer.from_file(str(mini / "tokenizer.json")).get_vocab_size()
    rows = load_file(mini / "model.safetensors")["model.embed_tokens.weight"].shape[0]
    assert rows == config["vocab_size"] > tokens
    assert config["model_type"] == "llava_Qwen2"
    assert config["mm_vision_tower"] == TOWER
    assert (mini / TOWER / "preprocessor_config.json").is_file()


def test_english_and_chinese_survive_the_tokenizer_and_tags_are_ordinary_text(mini: Path) -> None:
    tokenizer = Tokenizer.from_file(str(mini / "tokenizer.json"))
    for text in ("draw a snowman at night", "画一个夜晚的雪人", "<gen_image> a red fox </gen_image>", "naïve 🦊\n"):
        assert tokenizer.decode(tokenizer.encode(text).ids) == text
    assert len(tokenizer.encode("<gen_image>").ids) > 1
    assert len(tokenizer.encode("<|im_end|>").ids) == 1


def test_equal_seeds_give_equal_weights_and_others_do_not(mini: Path, tmp_path: Path) -> None:
    build_mllm(tmp_path / "same")
    build_mllm(tmp_path / "other", seed=1)
    first, same, other = (
        load_file(folder / "model.safetensors") for folder in (mini, tmp_path / "same", tmp_path / "other")
    )
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not torch.equal(first["model.embed_tokens.weight"], other["model.embed_tokens.weight"])
