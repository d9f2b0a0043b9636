"""From our settings to vLLM's: the arguments of its server and the variables of its processes.

The server shows itself on the local host unless told otherwise, writes no access log, offers no documentation
pages, knows no development routes, fetches nothing and reports nothing.
"""

import json
import math
import os
from pathlib import Path

from services.mllm.checkpoints import Prepared
from shared.settings import Settings

PLUGINS = ("llmga_torchvision", "llmga_parent", "llmga")
# A smaller model gains nothing from a second thread; on a busy machine it waits a time slice at every
# barrier.
ONE_THREAD_PARAMETERS = 50_000_000
CPU_BATCHED_TOKENS = 4_096  # of prompts in one step
MAX_LOGPROBS = 20  # per generated token, for those who check a deployment


def vllm_environment(settings: Settings, *, is_cpu: bool, parameters: int, python_path: str = "") -> dict[str, str]:
    """Return the variables that vLLM and what it loads must see, in this process and in its children."""
    home = settings.home.resolve()
    variables = {
        "VLLM_PLUGINS": ",".join(PLUGINS),
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
        "VLLM_SERVER_DEV_MODE": "0",
        "VLLM_CONFIGURE_LOGGING": "0",
        "VLLM_CACHE_ROOT": str(home / "cache" / "vllm"),
        # This process has threads and open ports, which a forked engine would inherit.
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    }
    if is_cpu:
        # see `startup/sitecustomize.py`
        paths = [str(Path(__file__).parent / "startup"), *filter(None, [python_path])]
        variables["PYTHONPATH"] = os.pathsep.join(paths)
        variables["VLLM_CPU_KVCACHE_SPACE"] = str(math.ceil(settings.mllm.kv_cache_gb))  # takes whole GiB
        if parameters < ONE_THREAD_PARAMETERS:
            variables["OMP_NUM_THREADS"] = "1"
        # Pinned threads of several processes would share the same few cores and starve each other.
        variables["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
    elif settings.device.startswith("cuda:"):
        variables["CUDA_VISIBLE_DEVICES"] = settings.device.partition(":")[2]
    return variables


def vllm_arguments(settings: Settings, prepared: Prepared, *, model: str, is_cpu: bool) -> list[str]:
    """Return the command line of vLLM's server."""
    mllm = settings.mllm
    dtype = mllm.dtype
    if dtype == "auto" and is_cpu:
        dtype = "float32"  # bfloat16 is emulated on CPUs without AMX
    arguments = [
        f"--model={_absolute(prepared.folder)}",
        f"--served-model-name={model}",
        f"--host={mllm.host}",
        f"--port={mllm.port}",
        f"--dtype={dtype}",
        f"--max-model-len={mllm.max_model_len}",
        f"--max-num-seqs={mllm.max_concurrency}",
        f"--max-logprobs={MAX_LOGPROBS}",
        "--scheduling-policy=priority",
        f"--limit-mm-per-prompt={json.dumps({'image': 1})}",
        "--disable-fastapi-docs",
        "--disable-uvicorn-access-log",
    ]
    if is_cpu:
        # A seeded request whose prompt is computed in two steps ends the engine: vLLM rewinds the generator
        # then, which those of torch's CPU device do not offer. Whole prompts need a budget that holds the
        # longest.
        arguments += [
            "--enforce-eager",
            "--no-enable-chunked-prefill",
            f"--max-num-batched-tokens={max(mllm.max_model_len, CPU_BATCHED_TOKENS)}",
        ]
    else:
        arguments.append(f"--gpu-memory-utilization={mllm.gpu_memory_utilization}")
    return arguments


def _absolute(folder: Path) -> str:
    return str(folder.resolve())
