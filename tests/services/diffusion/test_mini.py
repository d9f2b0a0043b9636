"""The mini checkpoint is a real one in small: SD1.5's layout, a tokenizer for every text, the same every time."""

import json
from pathlib import Path
from typing import Any

from hypothesis import assume, given
from hypothesis import strategies as st
from safetensors import safe_open

from services.diffusion.checkpoints import CheckpointFiles, inspect
from services.diffusion.loading import LoadedModel
from training.minis.diffusion import build_sd15


def test_equal_seeds_give_equal_checkpoints(files: CheckpointFiles, tmp_path: Path) -> None:
    build_sd15(tmp_path / "same", seed=0)
    build_sd15(tmp_path / "other", seed=1)
    assert inspect(tmp_path / "same").sha256 == files.sha256
    assert inspect(tmp_path / "other").sha256 != files.sha256


def test_it_has_the_layout_and_the_names_of_the_published_files(mini: Path, stock: Any) -> None:
    assert type(stock).__name__ == "StableDiffusionPipeline"
    assert not [path for path in mini.rglob("*") if path.suffix in {".bin", ".py", ".pt"}]
    with safe_open(mini / "text_encoder" / "model.safetensors", "pt") as tensors:
        assert all(name.startswith("text_model.") for name in tensors.keys())
    parts = (stock.unet, stock.vae, stock.text_encoder)
    assert 4_000_000 < sum(weight.numel() for part in parts for weight in part.parameters()) < 7_000_000
    vocabulary = json.loads((mini / "tokenizer" / "vocab.json").read_text())
    assert (vocabulary["<|startoftext|>"], vocabulary["<|endoftext|>"]) == (len(vocabulary) - 2, len(vocabulary) - 1)


@given(text=st.text(max_size=60))
def test_every_text_is_tokenized_without_unknown_tokens(model: LoadedModel, text: str) -> None:
    assume("<|" not in text)
    assert model.vocabulary.end not in model.vocabulary.ids(text), "the end token stands for unknown ones"


def test_a_word_of_our_text_is_few_tokens_and_a_strange_one_is_its_bytes(model: LoadedModel) -> None:
    assert len(model.vocabulary.ids("snowman")) == 1
    assert len(model.vocabulary.ids("\u2603")) == 3
