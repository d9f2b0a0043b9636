"""What cannot work is refused before anything is loaded, with the reason and the remedy."""

from dataclasses import replace
from typing import Any

import pytest

from services.mllm.options import Device, Options, OptionsRefused, resolve, stored_quantization, weights_bytes
from shared.contracts.published import PUBLISHED
from shared.settings import Settings
from tests.services.mllm.test_launch import FACTS

GIB = 1 << 30
# Llama 3 8B with LLaVA's tower and projector
TEXT = {
    "hidden_size": 4_096,
    "max_position_embeddings": 8_192,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128_256,
}
CONFIG: dict[str, Any] = {"dtype": "bfloat16", "text_config": TEXT}
LLAMA3 = replace(FACTS, family="llama3", image_tokens=576, parameters=8_354_000_000, tensor_bytes=16_708_000_000)
CPU = Device("cpu", "cpu", 64 * GIB)
AMPERE = Device("cuda", "RTX 3090", 24 * GIB, count=2, capability=(8, 6), has_bitsandbytes=True)
TURING = Device("cuda", "T4", 15 * GIB, count=4, capability=(7, 5), has_bitsandbytes=True)


def options(device: Device, config: dict[str, Any] = CONFIG, **settings: str) -> Options:
    loaded = Settings.load({f"LLMGA_MLLM__{name.upper()}": value for name, value in settings.items()})
    return resolve(loaded, config, LLAMA3, device)


def problems(device: Device, config: dict[str, Any] = CONFIG, **settings: str) -> list[str]:
    with pytest.raises(OptionsRefused) as caught:
        options(device, config, **settings)
    return caught.value.problems


def stored(method: str, **more: Any) -> dict[str, Any]:
    return {**CONFIG, "quantization_config": {"quant_method": method, **more}}


def test_defaults_follow_the_device() -> None:
    on_cpu, on_gpu = options(CPU), options(AMPERE)
    assert (on_cpu.dtype, on_cpu.execution, on_cpu.kv_cache_gb) == ("float32", "eager", 1.0)
    assert (on_gpu.dtype, on_gpu.execution, on_gpu.kv_cache_gb) == ("bfloat16", "compiled", None)
    assert on_gpu.gpu_memory_utilization == 0.9
    assert on_cpu.gpu_memory_utilization is None


def test_a_gpu_without_bfloat16_computes_in_float16() -> None:
    assert options(TURING, tensor_parallel_size="2").dtype == "float16"
    (problem,) = problems(TURING, dtype="bfloat16", tensor_parallel_size="2")
    assert "T4" in problem
    assert "float16" in problem


@pytest.mark.parametrize("quantization", ["bitsandbytes-4bit", "bitsandbytes-8bit", "fp8", "awq"])
def test_fewer_bits_are_refused_on_a_cpu(quantization: str) -> None:
    (problem,) = problems(CPU, quantization=quantization)
    assert problem.startswith(f"LLMGA_MLLM__QUANTIZATION is {quantization}, which needs a GPU: set it to auto")


def test_a_checkpoint_stored_in_fewer_bits_is_refused_on_a_cpu() -> None:
    (problem,) = problems(CPU, stored("awq"))
    assert "stored as awq" in problem
    assert "full precision" in problem


@pytest.mark.parametrize(
    ("method", "more", "name"),
    [
        ("awq", {}, "awq"),
        ("fp8", {}, "fp8"),
        ("bitsandbytes", {"load_in_4bit": True}, "bitsandbytes-4bit"),
        ("bitsandbytes", {"load_in_8bit": True}, "bitsandbytes-8bit"),
        ("compressed-tensors", {}, "compressed-tensors"),
        ("<b>", {}, "unknown"),
    ],
)
def test_weights_stored_in_fewer_bits_are_passed_through_as_they_are(method: str, more: Any, name: str) -> None:
    config = stored(method, **more)
    assert stored_quantization(config) == name
    found = options(AMPERE, config)
    assert found.quantization == name
    assert not found.is_quantised_on_load


def test_other_bits_than_those_stored_are_refused() -> None:
    (problem,) = problems(AMPERE, stored("awq"), quantization="fp8")
    assert "stored as awq" in problem
    assert "set it to auto" in problem


@pytest.mark.parametrize(("quantization", "remedy"), [("awq", "AWQ tool"), ("bitsandbytes-8bit", "set it to fp8")])
def test_bits_that_are_not_made_while_loading_are_refused(quantization: str, remedy: str) -> None:
    (problem,) = problems(AMPERE, quantization=quantization)
    assert remedy in problem


def test_bitsandbytes_needs_its_plugin() -> None:
    assert options(AMPERE, quantization="bitsandbytes-4bit").is_quantised_on_load
    (problem,) = problems(replace(AMPERE, has_bitsandbytes=False), quantization="bitsandbytes-4bit")
    assert "pip install vllm-bnb-plugin" in problem


def test_eight_bits_of_bitsandbytes_run_eagerly() -> None:
    config = stored("bitsandbytes", load_in_8bit=True)
    assert options(AMPERE, config).execution == "eager"
    (problem,) = problems(AMPERE, config, execution="compiled")
    assert "EXECUTION" in problem


def test_stored_bitsandbytes_cannot_be_split() -> None:
    (problem,) = problems(AMPERE, stored("bitsandbytes"), tensor_parallel_size="2")
    assert "cannot be split" in problem


def test_old_gpus_are_named_with_what_they_lack() -> None:
    (problem,) = problems(replace(AMPERE, name="V100", capability=(7, 0)), quantization="fp8")
    assert problem == "fp8 needs compute capability 7.5, V100 has 7.0"


@pytest.mark.parametrize(
    ("device", "size", "part"),
    [(CPU, "2", "no GPU"), (AMPERE, "4", "2 GPU(s)"), (replace(AMPERE, count=8), "3", "32 attention heads")],
)
def test_splits_that_cannot_be_are_refused(device: Device, size: str, part: str) -> None:
    (problem,) = problems(device, tensor_parallel_size=size)
    assert part in problem


def test_one_named_gpu_is_not_split_over_two() -> None:
    loaded = Settings.load({"LLMGA_DEVICE": "cuda:0", "LLMGA_MLLM__TENSOR_PARALLEL_SIZE": "2"})
    with pytest.raises(OptionsRefused, match="LLMGA_DEVICE names one GPU"):
        resolve(loaded, CONFIG, LLAMA3, AMPERE)


def test_compiling_on_a_cpu_takes_a_compiler() -> None:
    assert options(CPU, execution="compiled").execution == "compiled"
    (problem,) = problems(replace(CPU, has_compiler=False), execution="compiled")
    assert "g++" in problem


def test_a_context_beyond_the_model_or_too_short_for_a_picture_is_refused() -> None:
    (beyond,) = problems(AMPERE, max_model_len="16384")
    assert "8192" in beyond
    (short,) = problems(AMPERE, max_model_len="600", max_tokens="100")
    assert "641" in short


def test_a_cache_that_cannot_hold_one_conversation_is_refused() -> None:
    (problem,) = problems(AMPERE, kv_cache_gb="0.2")  # 128 KiB per token, 0.25 GiB for 2,048
    assert "takes 0.25" in problem
    assert options(AMPERE, kv_cache_gb="0.25").kv_cache_gb == 0.25


def test_weights_that_do_not_fit_are_refused_with_the_ways_to_make_them_fit() -> None:
    small = replace(AMPERE, memory_bytes=12 * GIB)
    (problem,) = problems(small)
    assert "15.6 GiB in bfloat16" in problem
    assert "bitsandbytes-4bit" in problem
    assert options(small, quantization="fp8").quantization == "fp8"
    assert options(small, tensor_parallel_size="2").tensor_parallel_size == 2
    assert "QUANTIZATION" not in problems(replace(CPU, memory_bytes=12 * GIB))[0]


def test_the_sizes_are_those_of_the_registry() -> None:
    (model,) = [model for model in PUBLISHED if model.name == "llmga-llama3-8b-it-full-finetune"]
    for name, bits in (("auto", 16), ("fp8", 8), ("bitsandbytes-4bit", 4)):
        found = weights_bytes(CONFIG, LLAMA3, options(AMPERE, quantization=name)) / 1e9
        assert found == pytest.approx(model.memory_gb[{16: "bf16", 8: "8bit", 4: "4bit"}[bits]], rel=0.08)


def test_all_problems_are_told_at_once() -> None:
    found = problems(CPU, quantization="fp8", tensor_parallel_size="2", max_model_len="16384")
    assert len(found) == 3


def test_what_is_shown_is_what_was_resolved() -> None:
    details = options(AMPERE, quantization="fp8").details()
    assert details["device"] == "RTX 3090"
    assert details["quantization"] == "fp8"
    assert details["dtype"] == "bfloat16"
    assert details["execution"] == "compiled"
    assert {"tensor_parallel_size", "max_model_len", "kv_cache_gb", "prefix_caching"} <= details.keys()


def test_phi3_s_positions_for_long_contexts_are_refused_as_they_change_short_answers() -> None:
    phi3 = {"dtype": "bfloat16", "text_config": TEXT | {"original_max_position_embeddings": 4_096}}
    assert options(AMPERE, phi3, max_model_len="4096").max_model_len == 4_096
    (problem,) = problems(AMPERE, phi3, max_model_len="4097")
    assert "was made for 4096" in problem
