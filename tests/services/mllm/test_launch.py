"""What vLLM is told, from our settings."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from services.mllm.checkpoints import Facts, Prepared
from services.mllm.launch import (
    IN_ENGINE_EXECUTOR,
    ONE_THREAD_PARAMETERS,
    cpu_batched_tokens,
    vllm_arguments,
    vllm_environment,
)
from services.mllm.options import Device, resolve
from shared.settings import Settings

FACTS = Facts(
    family="qwen2",
    source="llmga-mini",
    fingerprint="0" * 64,
    image_token="<image>",
    image_token_id=9,
    image_tokens=4,
    image_size_px=28,
    tower="built in",
    tensors=1,
    tensor_bytes=2,
    parameters=1,
    dropped={},
    scaled=[],
    ignored_files=[],
    ignored_settings=[],
    tokenizer="tokenizer.json",
    space_before=[],
)


CONFIG = {
    "dtype": "bfloat16",
    "text_config": {
        "hidden_size": 64,
        "max_position_embeddings": 32_768,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "vocab_size": 100,
    },
}
CPU = Device("cpu", "cpu", 1 << 34)
GPU = Device("cuda", "GPU", 1 << 34, count=4, capability=(9, 0), has_bitsandbytes=True)


def arguments(device: Device, *, parameters: int = 1, **settings: str) -> list[str]:
    loaded = Settings.load(settings)
    options = resolve(loaded, CONFIG, FACTS, device)
    facts = replace(FACTS, parameters=parameters)
    return vllm_arguments(loaded, options, Prepared(Path("/models/x"), facts), model="mini")


def environment(device: Device, *, parameters: int = 1, python_path: str = "", **settings: str) -> dict[str, str]:
    loaded = Settings.load(settings)
    options = resolve(loaded, CONFIG, FACTS, device)
    return vllm_environment(loaded, options, parameters=parameters, python_path=python_path)


def test_the_server_stays_on_the_local_host_unless_told_otherwise() -> None:
    assert "--host=127.0.0.1" in arguments(CPU)
    assert "--host=0.0.0.0" in arguments(CPU, LLMGA_MLLM__HOST="0.0.0.0")
    assert "--disable-fastapi-docs" in arguments(CPU)


def test_lanes_need_the_priority_policy() -> None:
    assert "--scheduling-policy=priority" in arguments(GPU)


def test_a_cpu_computes_whole_prompts_in_float32_and_eagerly() -> None:
    given = arguments(CPU, LLMGA_MLLM__MAX_MODEL_LEN="16384")
    assert {"--dtype=float32", "--enforce-eager", "--no-enable-chunked-prefill"} <= set(given)
    assert "--max-num-batched-tokens=16384" in given
    assert "--kv-cache-memory-bytes=1073741824" in given
    assert not [argument for argument in given if argument.startswith("--gpu-memory")]


def test_a_cpu_s_step_has_room_for_the_pictures_of_all_requests() -> None:
    given = arguments(CPU, LLMGA_MLLM__MAX_CONCURRENCY="1024", LLMGA_MLLM__MAX_MODEL_LEN="2048")
    assert "--max-num-seqs=1024" in given
    assert "--max-num-batched-tokens=4096" in given  # 4 tokens a picture
    assert cpu_batched_tokens(2_048, 32, image_tokens=576) == 32 * 576


def test_a_gpu_keeps_the_checkpoint_s_dtype_and_vllm_s_own_scheduling() -> None:
    given = arguments(GPU, LLMGA_MLLM__GPU_MEMORY_UTILIZATION="0.5")
    assert {"--dtype=bfloat16", "--gpu-memory-utilization=0.5"} <= set(given)
    assert not {"--enforce-eager", "--no-enable-chunked-prefill"} & set(given)
    assert not [argument for argument in given if argument.startswith(("--kv-cache", "--tensor", "--quantization"))]


def test_an_explicit_dtype_is_kept() -> None:
    assert "--dtype=bfloat16" in arguments(CPU, LLMGA_MLLM__DTYPE="bfloat16")


def test_options_reach_the_server() -> None:
    given = arguments(
        GPU,
        LLMGA_MLLM__EXECUTION="eager",
        LLMGA_MLLM__KV_CACHE_GB="1.5",
        LLMGA_MLLM__PREFIX_CACHING="false",
        LLMGA_MLLM__TENSOR_PARALLEL_SIZE="2",
    )
    assert {"--enforce-eager", "--no-enable-prefix-caching", "--tensor-parallel-size=2"} <= set(given)
    assert "--kv-cache-memory-bytes=1610612736" in given
    assert "--enable-prefix-caching" in arguments(GPU)
    assert "--enforce-eager" not in arguments(CPU, LLMGA_MLLM__EXECUTION="compiled")


def test_eight_bits_are_made_while_loading_and_leave_what_pictures_go_through_whole() -> None:
    given = dict(
        argument.split("=", 1) for argument in arguments(GPU, LLMGA_MLLM__QUANTIZATION="fp8") if "=" in argument
    )
    assert given["--quantization"] == "fp8_per_tensor"
    assert json.loads(given["--quantization-config"]) == {"ignore": ["*vision_tower*", "*multi_modal_projector*"]}


def test_four_bits_run_the_plugin_that_makes_them() -> None:
    assert "--quantization=bitsandbytes" in arguments(GPU, LLMGA_MLLM__QUANTIZATION="bitsandbytes-4bit")
    plugins = environment(GPU, LLMGA_MLLM__QUANTIZATION="bitsandbytes-4bit")["VLLM_PLUGINS"].split(",")
    assert "bitsandbytes" in plugins
    assert "llmga" in plugins


def test_processes_see_our_plugins_alone_and_no_network() -> None:
    given = environment(GPU)
    assert set(given["VLLM_PLUGINS"].split(",")) == {"llmga_torchvision", "llmga_parent", "llmga"}
    assert (given["HF_HUB_OFFLINE"], given["VLLM_NO_USAGE_STATS"]) == ("1", "1")
    assert "PYTHONPATH" not in given


def test_the_start_up_hook_goes_before_an_existing_python_path() -> None:
    given = environment(CPU, python_path="/a:/b")
    first, *rest = given["PYTHONPATH"].split(os.pathsep)
    assert (Path(first) / "sitecustomize.py").is_file()
    assert rest == ["/a", "/b"]


def test_only_small_models_run_on_one_thread() -> None:
    small = environment(CPU, parameters=ONE_THREAD_PARAMETERS - 1)
    large = environment(CPU, parameters=ONE_THREAD_PARAMETERS)
    assert small["OMP_NUM_THREADS"] == "1"
    assert "OMP_NUM_THREADS" not in large


def test_a_small_model_runs_inside_the_engine_s_process_on_a_cpu() -> None:
    option = f"--distributed-executor-backend={IN_ENGINE_EXECUTOR}"
    assert option in arguments(CPU, parameters=ONE_THREAD_PARAMETERS - 1)
    assert option not in arguments(CPU, parameters=ONE_THREAD_PARAMETERS)
    assert option not in arguments(GPU)


def test_a_named_gpu_is_the_only_one_seen() -> None:
    assert environment(GPU, LLMGA_DEVICE="cuda:1")["CUDA_VISIBLE_DEVICES"] == "1"


@pytest.mark.parametrize("device", [CPU, GPU], ids=["cpu", "gpu"])
def test_remote_code_is_never_asked_for(device: Device) -> None:
    assert not [argument for argument in arguments(device) if "trust" in argument]
