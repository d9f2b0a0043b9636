"""From our settings to vLLM's: the arguments of its server and the variables of its processes.

The server shows itself on the local host unless told otherwise, writes no access log, offers no documentation
pages, knows no development routes, fetches nothing and reports nothing.
"""

import json
import os
from pathlib import Path

from services.mllm.checkpoints import Prepared
from services.mllm.options import GIB, Options
from shared.contracts.chat import MAX_LOGPROBS
from shared.settings import Settings

PLUGINS = ("llmga_torchvision", "llmga_parent", "llmga")
BITSANDBYTES_PLUGIN = "bitsandbytes"  # the entry point of vllm-bnb-plugin; plugins that are not named are not run
# vLLM's `fp8` reads such checkpoints only; this makes 8 bits of any.
FP8_ON_LOAD = "fp8_per_tensor"
# The tower and the projector are small, and the pictures depend on them.
KEPT_WHOLE = ("*vision_tower*", "*multi_modal_projector*")
# A smaller model gains nothing from a second thread; on a busy machine it waits a time slice at every
# barrier.
ONE_THREAD_PARAMETERS = 50_000_000
# Such a model runs inside vLLM's engine process. The process that vLLM gives it otherwise on a CPU talks to the
# engine through shared memory that both watch by spinning: two whole cores for one thread of work. By its full
# name, as vLLM takes the short one back on CPUs: there it could not set OpenMP's variables, which are set here.
IN_ENGINE_EXECUTOR = "vllm.v1.executor.uniproc_executor.UniProcExecutor"
CPU_BATCHED_TOKENS = 4_096  # of prompts in one step


def vllm_environment(settings: Settings, options: Options, *, parameters: int, python_path: str = "") -> dict[str, str]:
    """Return the variables that vLLM and what it loads must see, in this process and in its children."""
    home = settings.home.resolve()
    needs_bitsandbytes = (options.quantization or "").startswith("bitsandbytes")
    variables = {
        "VLLM_PLUGINS": ",".join([*PLUGINS, *([BITSANDBYTES_PLUGIN] if needs_bitsandbytes else [])]),
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
        "VLLM_SERVER_DEV_MODE": "0",
        "VLLM_CONFIGURE_LOGGING": "0",
        "VLLM_CACHE_ROOT": str(home / "cache" / "vllm"),
        # This process has threads and open ports, which a forked engine would inherit.
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    }
    if options.device_kind == "cpu":
        # see `startup/sitecustomize.py`
        paths = [str(Path(__file__).parent / "startup"), *filter(None, [python_path])]
        variables["PYTHONPATH"] = os.pathsep.join(paths)
        if parameters < ONE_THREAD_PARAMETERS:
            variables["OMP_NUM_THREADS"] = "1"
        # Pinned threads of several processes would share the same few cores and starve each other.
        variables["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
    elif settings.device.startswith("cuda:"):
        variables["CUDA_VISIBLE_DEVICES"] = settings.device.partition(":")[2]
    return variables


def vllm_arguments(settings: Settings, options: Options, prepared: Prepared, *, model: str) -> list[str]:
    """Return the command line of vLLM's server."""
    mllm = settings.mllm
    arguments = [
        f"--model={_absolute(prepared.folder)}",
        f"--served-model-name={model}",
        f"--host={mllm.host}",
        f"--port={mllm.port}",
        f"--dtype={options.dtype}",
        f"--max-model-len={options.max_model_len}",
        f"--max-num-seqs={options.max_concurrency}",
        f"--max-logprobs={MAX_LOGPROBS}",
        "--enable-prefix-caching" if options.prefix_caching else "--no-enable-prefix-caching",
        "--scheduling-policy=priority",
        f"--limit-mm-per-prompt={json.dumps({'image': 1})}",
        "--disable-fastapi-docs",
        "--disable-uvicorn-access-log",
    ]
    if options.execution == "eager":
        arguments.append("--enforce-eager")
    if options.tensor_parallel_size > 1:
        arguments.append(f"--tensor-parallel-size={options.tensor_parallel_size}")
    if options.kv_cache_gb is not None:
        arguments.append(f"--kv-cache-memory-bytes={round(options.kv_cache_gb * GIB)}")
    if options.gpu_memory_utilization is not None:
        arguments.append(f"--gpu-memory-utilization={options.gpu_memory_utilization}")
    if options.is_quantised_on_load:
        arguments += _quantised_on_load(options.quantization)
    if options.device_kind == "cpu":
        budget = cpu_batched_tokens(options.max_model_len, options.max_concurrency, prepared.facts.image_tokens)
        arguments += ["--no-enable-chunked-prefill", f"--max-num-batched-tokens={budget}"]
        if prepared.facts.parameters < ONE_THREAD_PARAMETERS:
            arguments.append(f"--distributed-executor-backend={IN_ENGINE_EXECUTOR}")
    return arguments


def cpu_batched_tokens(max_model_len: int, max_concurrency: int, image_tokens: int) -> int:
    """Return how many tokens of prompts vLLM may compute in one step on a CPU.

    A seeded request whose prompt is computed in two steps ends the engine: vLLM rewinds the generator then, which
    those of torch's CPU device do not offer. Whole prompts need a budget that holds the longest. The tower has the
    same budget, and a picture that finds it spent lets its prompt be cut before the picture: so it also holds the
    pictures of all requests that can run.
    """
    return max(max_model_len, CPU_BATCHED_TOKENS, max_concurrency * image_tokens)


def _quantised_on_load(quantization: str | None) -> list[str]:
    if quantization == "fp8":
        return [
            f"--quantization={FP8_ON_LOAD}",
            f"--quantization-config={json.dumps({'ignore': KEPT_WHOLE})}",
        ]
    return ["--quantization=bitsandbytes"]


def _absolute(folder: Path) -> str:
    return str(folder.resolve())
