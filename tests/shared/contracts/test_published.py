"""The table of published checkpoints against what their files are known to hold (LLMGA.md §1.4, §9)."""

import pytest

from shared.contracts.published import PUBLISHED, find_published


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("llmga-vicuna-7b-v1.5-full-finetune", 7.06),
        ("llmga-mistral_instruct-full-finetune", 7.57),
        ("llmga-cn-llama3-8b-it-full-finetune", 8.35),
        ("llmga-gemma-2b-it-full-finetune", 2.82),
    ],
)
def test_parameter_counts_are_those_of_the_published_files(name: str, billions: float) -> None:
    model = next(model for model in PUBLISHED if model.name == name)
    assert round(model.parameters / 1e9, 2) == billions


def test_the_smallest_model_counts_its_tied_head_once() -> None:
    model = next(model for model in PUBLISHED if model.name == "llmga-Qwen2-0.5B-full-finetune")
    assert round(model.parameters / 1e9, 3) == 0.799


def test_every_checkpoint_is_listed_once_and_chinese_ones_say_so() -> None:
    names = [model.name for model in PUBLISHED]
    assert len(set(names)) == len(names) == 21
    assert {model.name for model in PUBLISHED if "zh" in model.languages} == {
        n for n in names if n.startswith("llmga-cn-")
    }


def test_fewer_bits_need_less_memory_but_never_less_than_what_stays_in_16_bits() -> None:
    for model in PUBLISHED:
        bf16, bits8, bits4 = (model.memory_gb[bits] for bits in ("bf16", "8bit", "4bit"))
        assert bf16 > bits8 > bits4 > model.kept_16bit * 2 / 1e9


def test_a_checkpoint_is_found_by_its_hub_id_and_by_its_name() -> None:
    for model in PUBLISHED:
        assert find_published(model.hub_id) is find_published(model.name) is model
    assert find_published("llmga-tiny") is None
