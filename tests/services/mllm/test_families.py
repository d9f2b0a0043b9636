"""Every family, from the files of its training to vLLM's answers: they are the unconverted weights' own."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from tests.services.mllm.answering import ENVIRONMENT
from tests.services.mllm.checkpoints.published import (
    MODEL_TYPES,
    TIED,
    Sizes,
    tensors_of,
    write_config,
    write_json,
    write_weights,
)
from tests.services.mllm.checkpoints.tokenizers_of import FamilyTokenizer, by_the_sheet, write_tokenizer
from tests.services.mllm.reference import Reference
from tests.services.mllm.test_conversation import GOLDEN

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

FAMILIES = sorted(MODEL_TYPES)
ANSWER_S = 400.0  # about 10 s a family on a quiet machine
WORST = 1e-4  # 1e-5 is usual; shrinking pictures by another library gives 1e-3

# What is particular to the family beside its tensors: LLMGA.md §1.1.
SETTINGS: dict[str, dict[str, Any]] = {
    "vicuna": {"rope_theta": 10_000.0, "rms_norm_eps": 1e-5},
    "llama2": {"rope_theta": 10_000.0},
    "llama3": {"rope_theta": 500_000.0, "rms_norm_eps": 1e-5, "attention_bias": False},
    "mistral": {"rope_theta": 1_000_000.0, "sliding_window": None, "rms_norm_eps": 1e-5},
    "qwen2": {"rope_theta": 1_000_000.0, "use_sliding_window": False, "sliding_window": None},
    "phi3": {
        "rope_theta": 10_000.0,
        "original_max_position_embeddings": 1_024,
        "rope_scaling": {
            "type": "longrope",
            "short_factor": [1.0 + 0.05 * n for n in range(16)],
            "long_factor": [2.0 + 0.5 * n for n in range(16)],
        },
        "sliding_window": None,
        "pad_token_id": 0,
    },
    "gemma": {"hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh", "head_dim": 64},
}
SIZES = {
    family: Sizes(
        hidden=128,
        inner=192,
        layers=3,
        heads=4,
        kv_heads=1 if family == "gemma" else 2,
        head=64 if family == "gemma" else 32,
        tower_hidden=64,
        tower_inner=96,
        tower_layers=3,
        side=56,
    )
    for family in FAMILIES
}
SPARE_ROWS = {"qwen2": 37, "phi3": 53}  # as the published ones have
EOS = {
    "vicuna": ["</s>"],
    "llama2": ["</s>"],
    "mistral": ["</s>"],
    "llama3": ["<|end_of_text|>"],
    "qwen2": ["<|im_end|>"],
    "phi3": ["<|endoftext|>"],
    "gemma": ["<eos>"],
}
# From an answer to the next one, LLMGA.md §2.
CONTINUED = {
    "vicuna": " {a}</s>USER: {q} ASSISTANT:",
    "llama2": " {a} </s><s>[INST] {q} [/INST]",
    "mistral": " {a} </s><s>[INST] {q} [/INST]",
    "llama3": "{a}<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n{q}<|eot_id|>"
    "<|start_header_id|>system<|end_header_id|>\n\n",
    "qwen2": "{a}<|im_end|><|im_start|>user\n{q}<|im_end|><|im_start|>assistant\n",
    "phi3": "{a}<|end|>\n<|user|>\n{q}<|end|>\n<|assistant|>\n",
    "gemma": "{a}<end_of_turn>\n<eos><start_of_turn>user\n{q}<end_of_turn>\n<start_of_turn>model\n",
}
TWO = [["What is this?", "A cat."], ["Draw it at night"]]
THREE = [["What is this?", "A cat."], ["Draw it at night", "<gen_image> a cat </gen_image>"], ["画成红色 🎨 of 1,234"]]
TOKENS = 24
# name of the case: turns, whether a picture comes with them
CASES = {"text only": (TWO, False), "with a picture": (TWO, True), "three turns with a picture": (THREE, True)}


def prompt_of(family: str, case: str) -> str:
    """Return the text that the model continues; ¶ stands where the picture is."""
    turns, has_image = CASES[case]
    text = GOLDEN[family] if has_image else GOLDEN[family].replace("¶\n", "")
    if len(turns) == 3:
        text += CONTINUED[family].format(a=turns[1][1], q=turns[2][0])
    return text


def write_checkpoint(folder: Path, family: str) -> FamilyTokenizer:
    """Write a random checkpoint in the published layout, float32, in two shards; return its tokenizer."""
    folder.mkdir(parents=True)
    tokenizer = write_tokenizer(folder, family)
    rows, sizes = tokenizer.size + SPARE_ROWS.get(family, 0), SIZES[family]
    rng = np.random.default_rng(FAMILIES.index(family))
    tensors = {}
    for name, shape in tensors_of(family, rows, sizes).items():
        values = rng.standard_normal(shape) * (0.1 if len(shape) > 1 else 0.2)
        # Norms act around 1; Gemma's are stored without it.
        is_norm = "norm" in name or "layrnorm" in name
        if is_norm and name.endswith("weight") and not (family == "gemma" and "vision" not in name):
            values += 1
        tensors[name] = values.astype(np.float32)
    # Weak features would hide mistakes with pictures.
    tensors["model.mm_projector.2.weight"] *= 4
    write_weights(folder, tensors, shards=2)
    write_config(
        folder,
        family,
        rows,
        sizes,
        **{
            "tie_word_embeddings": family in TIED,
            "torch_dtype": "float32",
            "auto_saved_by": "a trainer",
            "bos_token_id": tokenizer.bos_id,
            "eos_token_id": tokenizer.tokens[EOS[family][0]],
        }
        | SETTINGS[family],
    )
    write_json(folder / "generation_config.json", {"eos_token_id": tokenizer.tokens[EOS[family][0]]})
    return tokenizer


@dataclass(frozen=True)
class Served:
    """One family's checkpoint and vLLM's answers by case."""

    source: Path
    tokenizer: FamilyTokenizer
    facts: dict[str, Any]
    answers: dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def pixels() -> npt.NDArray[np.uint8]:
    """Return a picture that is wider than high, with something to see at every scale."""
    y, x = np.mgrid[0:90, 0:140]
    noise = np.random.default_rng(5).integers(0, 60, (90, 140, 3))
    planes = [x * 195 // 139, y * 195 // 89, ((x // 9 + y // 9) % 2) * 195]
    return (np.stack(planes, axis=-1) + noise).astype(np.uint8)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, pixels: npt.NDArray[np.uint8]) -> dict[str, Served]:
    """Return all families' answers, each from vLLM over its converted checkpoint."""
    folder = tmp_path_factory.mktemp("families")
    np.save(folder / "pixels.npy", pixels)
    tokenizers, asked = {}, {}
    for family in FAMILIES:
        # The only one that is told from its sister by its name.
        source = folder / ("llmga-llama-2-7b-chat" if family == "llama2" else f"llmga-{family}")
        tokenizers[family] = (source, write_checkpoint(source, family))
        asked[family] = {
            "source": str(source),
            "target": str(folder / f"{family}-converted"),
            "asked": [
                {
                    "turns": turns,
                    "pixels": str(folder / "pixels.npy") if has_image else None,
                    "max_tokens": TOKENS,
                    "temperature": 0.0,
                    "seed": None,
                }
                for turns, has_image in CASES.values()
            ],
        }
    write_json(folder / "asked.json", asked)
    with (folder / "log").open("wb") as log:
        done = subprocess.run(
            [sys.executable, "-m", "tests.services.mllm.answering", str(folder)],
            env=os.environ | ENVIRONMENT,
            stdout=log,
            stderr=log,
            timeout=ANSWER_S,
            check=False,
        )
    assert done.returncode == 0, (folder / "log").read_text()[-6_000:]
    answers = json.loads((folder / "answers.json").read_text())
    return {
        family: Served(
            source, tokenizer, answers[family]["facts"], dict(zip(CASES, answers[family]["answers"], strict=True))
        )
        for family, (source, tokenizer) in tokenizers.items()
    }


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_ids_sent_are_those_of_the_sheet(served: dict[str, Served], family: str, case: str) -> None:
    this = served[family]
    expected = by_the_sheet(this.tokenizer, prompt_of(family, case), this.facts["image_token_id"])
    assert this.answers[case]["prompt_token_ids"] == expected


@pytest.mark.parametrize("family", FAMILIES)
def test_log_probabilities_equal_those_of_the_unconverted_weights(
    served: dict[str, Served], pixels: npt.NDArray[np.uint8], family: str
) -> None:
    this = served[family]
    reference = Reference(this.source, family)
    image_id = this.facts["image_token_id"]
    for case, (_, has_image) in CASES.items():
        answer = this.answers[case]
        expected = reference.log_probabilities(
            answer["prompt_token_ids"], answer["token_ids"], image_id=image_id, pixels=pixels if has_image else None
        )
        assert len(answer["logprobs"]) == len(answer["token_ids"]) > 0
        compared = [
            (value, expected[position, int(token)].item())
            for position, given in enumerate(answer["logprobs"])
            for token, value in given.items()
        ]
        assert len(compared) >= 20 * len(answer["token_ids"])
        worst = max(abs(value - wanted) for value, wanted in compared)
        assert worst <= WORST, f"{case}: {worst}"
        # The id of the picture is never written, whatever its probability.
        expected[:, image_id] = -np.inf
        assert answer["token_ids"] == expected.argmax(-1).tolist(), case


@pytest.mark.parametrize("family", FAMILIES)
def test_the_picture_counts(served: dict[str, Served], pixels: npt.NDArray[np.uint8], family: str) -> None:
    """Without this the comparison above could hold because pictures changed nothing."""
    this = served[family]
    reference = Reference(this.source, family)
    answer = this.answers["with a picture"]
    image_id = this.facts["image_token_id"]
    ids, written = answer["prompt_token_ids"], answer["token_ids"]
    seen = reference.log_probabilities(ids, written, image_id=image_id, pixels=pixels)
    other = reference.log_probabilities(ids, written, image_id=image_id, pixels=255 - pixels)
    assert (seen - other).abs().max().item() > 100 * WORST
