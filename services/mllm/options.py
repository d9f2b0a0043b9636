"""What the settings come to on the machine at hand: resolved, checked, and shown by `/readyz?verbose`.

vLLM notices most of these faults minutes later, in another process, in words about its own code. Here they are
found before anything is loaded, all of them at once, each with the remedy. The functions are pure: the device
is described to them.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from services.mllm.checkpoints import Facts
from shared.settings import Settings

GIB = 1 << 30
CPU_KV_CACHE_GB = 1.0
_BYTES = {"bfloat16": 2.0, "float16": 2.0, "float32": 4.0}
# Bytes per weight of the language model's layers: int8 and fp8; nf4 with one 32-bit scale per 64 weights.
_QUANTISED_BYTES = {"fp8": 1.0, "bitsandbytes-8bit": 1.0, "awq": 0.53, "bitsandbytes-4bit": 0.5625}
_BFLOAT16_SINCE = (8, 0)  # Ampere
_QUANTISED_SINCE = {"fp8": (7, 5), "awq": (7, 5), "bitsandbytes-8bit": (7, 5), "bitsandbytes-4bit": (7, 5)}
_QUESTION_TOKENS = 64  # a system prompt and a short question


class OptionsRefused(Exception):
    """The settings cannot work on this machine; the message lists every reason with its remedy."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("these settings cannot work here:\n" + "\n".join(f"  - {problem}" for problem in problems))
        self.problems = problems


@dataclass(frozen=True)
class Device:
    """Where the model will run. `memory_bytes` is that of one device; `capability` is CUDA's."""

    kind: Literal["cpu", "cuda"]
    name: str
    memory_bytes: int
    count: int = 1
    capability: tuple[int, int] = (0, 0)
    has_compiler: bool = True
    has_bitsandbytes: bool = False  # vLLM's plugin for it


@dataclass(frozen=True)
class Options:
    """What vLLM is started with. `kv_cache_gb` None: what `gpu_memory_utilization` leaves."""

    device: str
    device_kind: Literal["cpu", "cuda"]
    dtype: str
    quantization: str | None
    is_quantised_on_load: bool
    tensor_parallel_size: int
    execution: Literal["eager", "compiled"]
    prefix_caching: bool
    max_model_len: int
    max_concurrency: int
    kv_cache_gb: float | None
    gpu_memory_utilization: float | None

    def details(self) -> dict[str, Any]:
        """Return what `/readyz?verbose` shows."""
        hidden = {"device_kind", "is_quantised_on_load"}
        return {name: value for name, value in vars(self).items() if name not in hidden}


def resolve(settings: Settings, config: Mapping[str, Any], facts: Facts, device: Device) -> Options:
    """Return what to start vLLM with; `config` is the converted checkpoint's config.json.

    Raises:
        OptionsRefused: something cannot work.
    """
    mllm = settings.mllm
    stored = stored_quantization(config)
    dtype = _dtype(mllm.dtype, config, device)
    is_cpu = device.kind == "cpu"
    quantization = stored if mllm.quantization == "auto" else mllm.quantization
    options = Options(
        device=device.name,
        device_kind=device.kind,
        dtype=dtype,
        quantization=quantization,
        is_quantised_on_load=quantization is not None and stored is None,
        tensor_parallel_size=mllm.tensor_parallel_size,
        execution=_execution(quantization, device) if mllm.execution == "auto" else mllm.execution,
        prefix_caching=mllm.prefix_caching,
        max_model_len=mllm.max_model_len,
        max_concurrency=mllm.max_concurrency,
        kv_cache_gb=CPU_KV_CACHE_GB if is_cpu and mllm.kv_cache_gb is None else mllm.kv_cache_gb,
        gpu_memory_utilization=None if is_cpu else mllm.gpu_memory_utilization,
    )
    problems = [
        *_quantization_problems(mllm.quantization, stored, options, device),
        *_device_problems(settings, config, options, device),
        *_length_problems(settings, config, facts),
    ]
    if not problems:  # sums over what is wrong already would only confuse
        problems = list(_memory_problems(config, facts, options, device))
    if problems:
        raise OptionsRefused(problems)
    return options


def stored_quantization(config: Mapping[str, Any]) -> str | None:
    """Return how the checkpoint's weights are quantised: by its own word, or None."""
    text = config.get("text_config")
    stored = config.get("quantization_config") or (text or {}).get("quantization_config")
    if not isinstance(stored, Mapping):
        return None
    method = str(stored.get("quant_method", "unknown"))
    if method == "bitsandbytes":
        return "bitsandbytes-8bit" if stored.get("load_in_8bit") is True else "bitsandbytes-4bit"
    return method if re.fullmatch(r"[a-z0-9_-]{1,40}", method) else "unknown"


def _dtype(wanted: str, config: Mapping[str, Any], device: Device) -> str:
    if wanted != "auto":
        return wanted
    if device.kind == "cpu":
        return "float32"  # bfloat16 is emulated on CPUs without AMX
    has_bfloat16 = device.capability >= _BFLOAT16_SINCE
    return "float16" if config.get("dtype") == "float16" or not has_bfloat16 else "bfloat16"


def _execution(quantization: str | None, device: Device) -> Literal["eager", "compiled"]:
    return "eager" if device.kind == "cpu" or quantization == "bitsandbytes-8bit" else "compiled"


def _quantization_problems(wanted: str, stored: str | None, options: Options, device: Device) -> Iterator[str]:
    name = options.quantization
    if name is None:
        return
    if device.kind == "cpu":
        where = "the checkpoint's weights are stored as" if stored else "LLMGA_MLLM__QUANTIZATION is"
        remedy = "take a checkpoint in full precision" if stored else "set it to auto"
        yield f"{where} {name}, which needs a GPU: {remedy}, or run this service on a host with one"
        return
    if stored is not None and wanted not in ("auto", stored):
        yield (
            f"LLMGA_MLLM__QUANTIZATION is {wanted} and the checkpoint's weights are stored as {stored}: set it to auto"
        )
        return
    if stored is None and name == "awq":
        yield (
            "LLMGA_MLLM__QUANTIZATION is awq and the checkpoint's weights are not stored so: quantise the converted "
            "checkpoint with an AWQ tool and give that folder, or set it to bitsandbytes-4bit"
        )
    if stored is None and name == "bitsandbytes-8bit":
        yield (
            "LLMGA_MLLM__QUANTIZATION is bitsandbytes-8bit, which vLLM reads but does not make while loading: give a "
            "checkpoint that is stored so, or set it to fp8 for 8 bits from any checkpoint"
        )
    if name.startswith("bitsandbytes") and not device.has_bitsandbytes:
        yield f"{name} needs vLLM's plugin for it: pip install vllm-bnb-plugin, in this service's environment"
    if name == "bitsandbytes-8bit" and options.execution == "compiled":
        yield "bitsandbytes-8bit cannot be compiled: set LLMGA_MLLM__EXECUTION to eager"
    if stored is not None and name.startswith("bitsandbytes") and options.tensor_parallel_size > 1:
        yield f"weights stored as {name} cannot be split: set LLMGA_MLLM__TENSOR_PARALLEL_SIZE to 1"
    if device.capability < (least := _QUANTISED_SINCE.get(name, (0, 0))):
        yield f"{name} needs compute capability {_dotted(least)}, {device.name} has {_dotted(device.capability)}"
    if options.dtype == "float32" and not name.startswith("bitsandbytes"):
        yield f"{name} computes in 16 bits: set LLMGA_MLLM__DTYPE to auto"


def _device_problems(settings: Settings, config: Mapping[str, Any], options: Options, device: Device) -> Iterator[str]:
    size = options.tensor_parallel_size
    if device.kind == "cpu":
        if size > 1:
            yield (
                f"LLMGA_MLLM__TENSOR_PARALLEL_SIZE is {size} and there is no GPU: set it to 1; "
                "more services beside each other share the jobs of one queue"
            )
        if options.execution == "compiled" and not device.has_compiler:
            yield "LLMGA_MLLM__EXECUTION is compiled, which takes a C++ compiler: install g++, or set it to auto"
        return
    if options.dtype == "bfloat16" and device.capability < _BFLOAT16_SINCE:
        yield (
            f"LLMGA_MLLM__DTYPE is bfloat16, which {device.name} (compute capability {_dotted(device.capability)}) "
            "lacks: set it to auto or float16"
        )
    if size == 1:
        return
    if settings.device.startswith("cuda:"):
        yield f"LLMGA_DEVICE names one GPU, LLMGA_MLLM__TENSOR_PARALLEL_SIZE asks for {size}: set LLMGA_DEVICE to cuda"
    elif size > device.count:
        yield f"LLMGA_MLLM__TENSOR_PARALLEL_SIZE is {size}, this host has {device.count} GPU(s): set it to at most that"
    text = config["text_config"]
    heads = int(text["num_attention_heads"])
    kv_heads = int(text.get("num_key_value_heads", heads))
    if heads % size or (kv_heads % size and size % kv_heads):
        yield (
            f"LLMGA_MLLM__TENSOR_PARALLEL_SIZE is {size}, which does not divide the model's {heads} attention heads "
            f"and {kv_heads} key-value heads: set it to 1, 2, 4 or whatever divides both"
        )


def _length_problems(settings: Settings, config: Mapping[str, Any], facts: Facts) -> Iterator[str]:
    mllm = settings.mllm
    text = config["text_config"]
    # Phi-3 has other positions for longer contexts; vLLM takes those for short conversations too, and they would
    # be answered in another way than in training.
    longest = text.get("original_max_position_embeddings") or text.get("max_position_embeddings")
    if isinstance(longest, int) and mllm.max_model_len > longest:
        yield f"LLMGA_MLLM__MAX_MODEL_LEN is {mllm.max_model_len}, the model was made for {longest}: set it to that"
    least = facts.image_tokens + _QUESTION_TOKENS + 1
    if mllm.max_model_len < least:
        yield f"LLMGA_MLLM__MAX_MODEL_LEN is {mllm.max_model_len}, a picture with a question takes {least}: raise it"


def _memory_problems(config: Mapping[str, Any], facts: Facts, options: Options, device: Device) -> Iterator[str]:
    per_token = kv_bytes_per_token(config, options)
    if options.kv_cache_gb is not None and options.kv_cache_gb * GIB < per_token * options.max_model_len:
        needed = per_token * options.max_model_len / GIB
        yield (
            f"LLMGA_MLLM__KV_CACHE_GB is {options.kv_cache_gb:g} and one conversation of "
            f"{options.max_model_len} tokens takes {needed:.2f}: raise it, or lower LLMGA_MLLM__MAX_MODEL_LEN"
        )
    weights = weights_bytes(config, facts, options) / options.tensor_parallel_size
    share = options.gpu_memory_utilization or 1.0
    if weights > device.memory_bytes * share:
        remedies = "take a smaller checkpoint"
        if device.kind == "cuda":
            remedies = (
                "set LLMGA_MLLM__QUANTIZATION to fp8 or bitsandbytes-4bit, spread it with "
                "LLMGA_MLLM__TENSOR_PARALLEL_SIZE, raise LLMGA_MLLM__GPU_MEMORY_UTILIZATION, or " + remedies
            )
        yield (
            f"the weights take {weights / GIB:.1f} GiB in {options.quantization or options.dtype}, "
            f"{share:.0%} of {device.name} are {device.memory_bytes * share / GIB:.1f}: {remedies}"
        )


def kv_bytes_per_token(config: Mapping[str, Any], options: Options) -> float:
    """Return the size of one token's keys and values on one device."""
    text = config["text_config"]
    heads = int(text["num_attention_heads"])
    kv_heads = int(text.get("num_key_value_heads") or heads)
    head_size = int(text.get("head_dim") or int(text["hidden_size"]) // heads)
    own_heads = max(kv_heads // options.tensor_parallel_size, 1)
    return 2.0 * int(text["num_hidden_layers"]) * own_heads * head_size * _BYTES[options.dtype]


def weights_bytes(config: Mapping[str, Any], facts: Facts, options: Options) -> float:
    """Return the size of all weights as they will be loaded."""
    if options.quantization is not None and not options.is_quantised_on_load:
        return float(facts.tensor_bytes)
    text = config["text_config"]
    embeddings = int(text["vocab_size"]) * int(text["hidden_size"])
    whole = min(embeddings * (1 if text.get("tie_word_embeddings") else 2), facts.parameters)
    quantised = _QUANTISED_BYTES.get(options.quantization or "", _BYTES[options.dtype])
    return whole * _BYTES[options.dtype] + (facts.parameters - whole) * quantised


def _dotted(capability: tuple[int, int]) -> str:
    return ".".join(map(str, capability))
