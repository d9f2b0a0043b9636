"""Every family, from the files of its training to vLLM's answers: they are the unconverted weights' own."""

import base64
import json
import os
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from tokenizers import Tokenizer

from shared.contracts import OutputFormat
from shared.media import encode_image
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
from tests.services.mllm.running import RunningService
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
            "type": "su",  # its first name
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
LONG_SIDE, PICTURES, CROWD = 24, 4, 40  # in patches: 576 tokens as the published tower's pictures take
# name of the case: turns, whether a picture comes with them
CASES = {"text only": (TWO, False), "with a picture": (TWO, True), "three turns with a picture": (THREE, True)}


def prompt_of(family: str, case: str) -> str:
    """Return the text that the model continues; ¶ stands where the picture is."""
    turns, has_image = CASES[case]
    text = GOLDEN[family] if has_image else GOLDEN[family].replace("¶\n", "")
    if len(turns) == 3:
        text += CONTINUED[family].format(a=turns[1][1], q=turns[2][0])
    return text


def write_checkpoint(folder: Path, family: str, sizes: Sizes) -> FamilyTokenizer:
    """Write a random checkpoint in the published layout, float32, in two shards; return its tokenizer."""
    folder.mkdir(parents=True)
    tokenizer = write_tokenizer(folder, family)
    rows = tokenizer.size + SPARE_ROWS.get(family, 0)
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
    pictures: dict[str, int]


@pytest.fixture(scope="module")
def pixels() -> npt.NDArray[np.uint8]:
    """Return a picture that is wider than high, with something to see at every scale."""
    y, x = np.mgrid[0:90, 0:140]
    noise = np.random.default_rng(5).integers(0, 60, (90, 140, 3))
    planes = [x * 195 // 139, y * 195 // 89, ((x // 9 + y // 9) % 2) * 195]
    return (np.stack(planes, axis=-1) + noise).astype(np.uint8)


def question(turns: list[list[str]], pixels: Path | None, **values: Any) -> dict[str, Any]:
    """Return one question to `answering`."""
    greedy = {"max_tokens": TOKENS, "temperature": 0.0, "seed": None}
    return {"turns": turns, "pixels": str(pixels) if pixels else None} | greedy | values


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory, pixels: npt.NDArray[np.uint8]) -> dict[str, Any]:
    """Return what vLLM answers over each family's converted checkpoint, and over one that is crowded."""
    folder = tmp_path_factory.mktemp("families")
    np.save(folder / "pixels.npy", pixels)
    sources, asked, tokenizers = {}, {}, {}
    for family in FAMILIES:
        # The only one that is told from its sister by its name.
        sources[family] = folder / ("llmga-llama-2-7b-chat" if family == "llama2" else f"llmga-{family}")
        tokenizers[family] = write_checkpoint(sources[family], family, SIZES[family])
        asked[family] = {
            "source": str(sources[family]),
            "target": str(folder / f"{family}-converted"),
            "cache_bytes": 64 * 2**20,
            "asked": [
                question(turns, folder / "pixels.npy" if has_image else None) for turns, has_image in CASES.values()
            ],
        }
    write_checkpoint(folder / "crowded", "qwen2", replace(SIZES["qwen2"], side=14 * LONG_SIDE))
    for number in range(PICTURES):
        np.save(folder / f"{number}.npy", np.roll(pixels, 7 * number, axis=1))
    asked["crowded"] = {
        "source": str(folder / "crowded"),
        "target": str(folder / "crowded-converted"),
        "cache_bytes": 2**22,  # four conversations: the others wait, and some are computed again
        "asked": [
            question(
                [["word " * (5 * number % 40)]],
                folder / f"{number % PICTURES}.npy" if number % 5 else None,
                temperature=1.0,
                seed=number,
            )
            for number in range(CROWD)
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
    assert done.returncode == 0, (folder / "log").read_text()[-2_000:]
    found: dict[str, Any] = json.loads((folder / "answers.json").read_text())
    for family in FAMILIES:
        found[family] |= {"source": sources[family], "tokenizer": tokenizers[family]}
    return found


@pytest.fixture(scope="module")
def served(answers: dict[str, Any]) -> dict[str, Served]:
    """Return all families' answers by case."""
    return {
        family: Served(
            source=answers[family]["source"],
            tokenizer=answers[family]["tokenizer"],
            facts=answers[family]["facts"],
            answers=dict(zip(CASES, answers[family]["answers"], strict=True)),
            pictures=answers[family]["pictures"],
        )
        for family in FAMILIES
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


@pytest.mark.parametrize("family", FAMILIES)
def test_a_picture_that_comes_again_is_not_prepared_again(served: dict[str, Served], family: str) -> None:
    assert served[family].pictures == {"asked": 2, "known": 1}


def test_seeded_pictures_that_wait_for_room_never_end_the_engine(answers: dict[str, Any]) -> None:
    """A seeded prompt that is computed in two steps ends vLLM's engine on a CPU: none may be cut in two."""
    crowd = answers["crowded"]
    assert crowd["facts"]["image_tokens"] == LONG_SIDE**2
    assert len(crowd["answers"]) == CROWD
    assert all(answer["token_ids"] for answer in crowd["answers"])
    assert crowd["pictures"]["known"] == crowd["pictures"]["asked"] - PICTURES


def test_the_real_service_answers_about_a_picture_as_the_unconverted_weights_do(
    service: RunningService, mini: Path, pixels: npt.NDArray[np.uint8]
) -> None:
    png = base64.b64encode(encode_image(pixels, OutputFormat.PNG, {})).decode()
    answer = service.write(
        task="answer",
        instruction="What is this?",
        image=png,
        temperature=0,
        max_tokens=TOKENS,
        logprobs=5,
        return_token_ids=True,
    ).json()
    prompt, written = answer["prompt_token_ids"], answer["token_ids"]
    published = Tokenizer.from_file(str(mini / "tokenizer.json")).get_vocab_size()
    (image_id,) = [token for token in set(prompt) if token >= published]
    expected = Reference(mini, "qwen2").log_probabilities(prompt, written, image_id=image_id, pixels=pixels)
    worst = max(
        abs(value - expected[position, int(token)].item())
        for position, given in enumerate(answer["logprobs"])
        for token, value in given.items()
    )
    assert written
    assert worst <= WORST
