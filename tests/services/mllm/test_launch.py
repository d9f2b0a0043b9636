"""What vLLM is told, from our settings."""

import os
from pathlib import Path

import pytest

from services.mllm.checkpoints import Facts, Prepared
from services.mllm.launch import ONE_THREAD_PARAMETERS, vllm_arguments, vllm_environment
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
)


def arguments(*, is_cpu: bool, **settings: str) -> list[str]:
    return vllm_arguments(Settings.load(settings), Prepared(Path("/models/x"), FACTS), model="mini", is_cpu=is_cpu)


def test_the_server_stays_on_the_local_host_unless_told_otherwise() -> None:
    assert "--host=127.0.0.1" in arguments(is_cpu=True)
    assert "--host=0.0.0.0" in arguments(is_cpu=True, LLMGA_MLLM__HOST="0.0.0.0")
    assert "--disable-fastapi-docs" in arguments(is_cpu=True)


def test_lanes_need_the_priority_policy() -> None:
    assert "--scheduling-policy=priority" in arguments(is_cpu=False)


def test_a_cpu_computes_whole_prompts_in_float32_and_eagerly() -> None:
    given = arguments(is_cpu=True, LLMGA_MLLM__MAX_MODEL_LEN="16384")
    assert {"--dtype=float32", "--enforce-eager", "--no-enable-chunked-prefill"} <= set(given)
    assert "--max-num-batched-tokens=16384" in given
    assert not [argument for argument in given if argument.startswith("--gpu-memory")]


def test_a_gpu_keeps_the_checkpoint_s_dtype_and_vllm_s_own_scheduling() -> None:
    given = arguments(is_cpu=False, LLMGA_MLLM__GPU_MEMORY_UTILIZATION="0.5")
    assert {"--dtype=auto", "--gpu-memory-utilization=0.5"} <= set(given)
    assert not {"--enforce-eager", "--no-enable-chunked-prefill"} & set(given)


def test_an_explicit_dtype_is_kept() -> None:
    assert "--dtype=bfloat16" in arguments(is_cpu=True, LLMGA_MLLM__DTYPE="bfloat16")


def test_processes_see_both_plugins_and_no_network() -> None:
    given = vllm_environment(Settings.load({}), is_cpu=False, parameters=1)
    assert set(given["VLLM_PLUGINS"].split(",")) == {"llmga_torchvision", "llmga_parent", "llmga"}
    assert (given["HF_HUB_OFFLINE"], given["VLLM_NO_USAGE_STATS"]) == ("1", "1")
    assert "PYTHONPATH" not in given


def test_the_kv_cache_on_a_cpu_is_rounded_up_to_whole_gib() -> None:
    settings = Settings.load({"LLMGA_MLLM__KV_CACHE_GB": "1.2"})
    assert vllm_environment(settings, is_cpu=True, parameters=1)["VLLM_CPU_KVCACHE_SPACE"] == "2"


def test_the_start_up_hook_goes_before_an_existing_python_path() -> None:
    given = vllm_environment(Settings.load({}), is_cpu=True, parameters=1, python_path="/a:/b")
    first, *rest = given["PYTHONPATH"].split(os.pathsep)
    assert (Path(first) / "sitecustomize.py").is_file()
    assert rest == ["/a", "/b"]


def test_only_small_models_run_on_one_thread() -> None:
    small = vllm_environment(Settings.load({}), is_cpu=True, parameters=ONE_THREAD_PARAMETERS - 1)
    large = vllm_environment(Settings.load({}), is_cpu=True, parameters=ONE_THREAD_PARAMETERS)
    assert small["OMP_NUM_THREADS"] == "1"
    assert "OMP_NUM_THREADS" not in large


def test_a_named_gpu_is_the_only_one_seen() -> None:
    settings = Settings.load({"LLMGA_DEVICE": "cuda:1"})
    assert vllm_environment(settings, is_cpu=False, parameters=1)["CUDA_VISIBLE_DEVICES"] == "1"


@pytest.mark.parametrize("is_cpu", [True, False])
def test_remote_code_is_never_asked_for(is_cpu: bool) -> None:
    assert not [argument for argument in arguments(is_cpu=is_cpu) if "trust" in argument]
