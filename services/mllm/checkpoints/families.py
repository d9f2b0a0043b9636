"""What is particular to each family of language models: its configuration and the tensors that it must have.

The shapes follow from the configuration (LLMGA.md §1.1), so that a checkpoint can be checked before anything
is loaded.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.mllm.checkpoints.errors import CheckpointError

Shape = tuple[int, ...]

SEE_PUBLISHED = "Compare it with the config.json of the published checkpoint."

# Largest values of any published family, with room; a configuration beyond them is a mistake or an attack.
_LIMITS = {
    "hidden_size": 16_384,
    "intermediate_size": 65_536,
    "num_hidden_layers": 128,
    "num_attention_heads": 256,
    "num_key_value_heads": 256,
    "vocab_size": 1_000_000,
    "head_dim": 1_024,
}


@dataclass(frozen=True)
class Architecture:
    """The language model below one LLaVA `model_type`.

    scales_image: the original scales picture features with the embeddings by sqrt(hidden_size); servers do
        not, so that it is folded into the projector.
    is_trained_slow: training used the slow tokenizer, over sentencepiece (LLMGA.md §1.7).
    """

    model_type: str
    causal_lm: str
    has_qkv_bias: bool = False
    is_fused: bool = False
    is_tied: bool = False
    scales_image: bool = False
    is_trained_slow: bool = False


ARCHITECTURES = {
    "llava": Architecture("llama", "LlamaForCausalLM", is_trained_slow=True),
    "llava_llama": Architecture("llama", "LlamaForCausalLM", is_trained_slow=True),
    "llava_mistral": Architecture("mistral", "MistralForCausalLM", is_trained_slow=True),
    "llava_Qwen2": Architecture("qwen2", "Qwen2ForCausalLM", has_qkv_bias=True),
    "llava_Phi3": Architecture("phi3", "Phi3ForCausalLM", is_fused=True, is_trained_slow=True),
    "llava_gemma": Architecture("gemma", "GemmaForCausalLM", is_tied=True, scales_image=True),
}

# Tokens that stand for the picture, by family; the first one that the tokenizer has.
IMAGE_TOKENS = {
    "vicuna": "<unk>",  # the padding of training; byte fallback means that no text gives it
    "llama2": "<unk>",
    "mistral": "<unk>",
    "llama3": "<|reserved_special_token_1|>",  # 0 is the padding of training
    "phi3": "<|placeholder1|>",
    "gemma": "<unused0>",
}

# What the language models' configurations have; nothing else of a published config.json is passed on.
_TEXT_SETTINGS = frozenset(
    """attention_bias attention_dropout bos_token_id embd_pdrop eos_token_id head_dim hidden_act hidden_activation
    hidden_size initializer_range intermediate_size max_position_embeddings max_window_layers mlp_bias
    num_attention_heads num_hidden_layers num_key_value_heads original_max_position_embeddings pad_token_id
    partial_rotary_factor pretraining_tp resid_pdrop rms_norm_eps rope_parameters rope_scaling rope_theta
    sliding_window use_sliding_window vocab_size""".split()
)
# LLaVA's, which were checked or have a file of their own, and those of saving.
_KNOWN_SETTINGS = ("mm_", "tune_mm", "freeze_mm", "use_mm", "tokenizer_", "image_", "unfreeze_mm")
_KNOWN_NAMES = frozenset(
    """_name_or_path architectures dtype model_type tie_word_embeddings torch_dtype transformers_version
    use_cache""".split()
)


def integer(path: Path, config: Mapping[str, Any], name: str, default: int | None = None) -> int:
    """Return a positive integer of a configuration.

    Raises:
        CheckpointError: it is missing, not an integer, or out of bounds.
    """
    value = config.get(name)
    if value is None and default is not None:
        return default
    if type(value) is not int or not 1 <= value <= _LIMITS.get(name, 1_000_000):
        raise CheckpointError(path, f"{name} is {str(value)[:40]!r}, which is no sensible number", SEE_PUBLISHED)
    return value


def text_config(path: Path, architecture: Architecture, published: Mapping[str, Any]) -> dict[str, Any]:
    """Return the language model's configuration from a published config.json."""
    config = {name: value for name, value in published.items() if name in _TEXT_SETTINGS}
    scaling = config.get("rope_scaling")
    if isinstance(scaling, dict) and scaling.get("type") == "su":  # the first name of Phi-3's long contexts
        config["rope_scaling"] = {**scaling, "type": "longrope"}
    config["model_type"] = architecture.model_type
    config["architectures"] = [architecture.causal_lm]
    config["tie_word_embeddings"] = is_tied(path, architecture, published)
    return config


def ignored_settings(published: Mapping[str, Any]) -> list[str]:
    """Return the names in a published config.json that mean nothing to any family."""
    return sorted(
        name for name in published if name not in _TEXT_SETTINGS | _KNOWN_NAMES and not name.startswith(_KNOWN_SETTINGS)
    )


def is_tied(path: Path, architecture: Architecture, config: Mapping[str, Any]) -> bool:
    """Return whether the head is the embedding, and so is stored once."""
    value = config.get("tie_word_embeddings", architecture.is_tied)
    if not isinstance(value, bool):
        raise CheckpointError(path, "tie_word_embeddings is neither true nor false", SEE_PUBLISHED)
    return value


def language_model_shapes(path: Path, architecture: Architecture, config: Mapping[str, Any]) -> dict[str, Shape]:
    """Return the published names and shapes of the language model's tensors.

    Raises:
        CheckpointError: the configuration contradicts itself.
    """
    hidden = integer(path, config, "hidden_size")
    inner = integer(path, config, "intermediate_size")
    heads = integer(path, config, "num_attention_heads")
    kv_heads = integer(path, config, "num_key_value_heads", heads)
    rows = integer(path, config, "vocab_size")
    if hidden % heads and config.get("head_dim") is None:
        raise CheckpointError(path, "hidden_size is no multiple of num_attention_heads", SEE_PUBLISHED)
    head = integer(path, config, "head_dim", max(hidden // heads, 1))
    shapes: dict[str, Shape] = {"model.embed_tokens.weight": (rows, hidden), "model.norm.weight": (hidden,)}
    if not is_tied(path, architecture, config):
        shapes["lm_head.weight"] = (rows, hidden)
    layer: dict[str, Shape] = {
        "input_layernorm.weight": (hidden,),
        "post_attention_layernorm.weight": (hidden,),
        "self_attn.o_proj.weight": (hidden, heads * head),
        "mlp.down_proj.weight": (hidden, inner),
    }
    if architecture.is_fused:
        layer["self_attn.qkv_proj.weight"] = ((heads + 2 * kv_heads) * head, hidden)
        layer["mlp.gate_up_proj.weight"] = (2 * inner, hidden)
    else:
        for name, width in (("q", heads * head), ("k", kv_heads * head), ("v", kv_heads * head)):
            layer[f"self_attn.{name}_proj.weight"] = (width, hidden)
            if architecture.has_qkv_bias:
                layer[f"self_attn.{name}_proj.bias"] = (width,)
        layer["mlp.gate_proj.weight"] = layer["mlp.up_proj.weight"] = (inner, hidden)
    for index in range(integer(path, config, "num_hidden_layers")):
        shapes |= {f"model.layers.{index}.{name}": shape for name, shape in layer.items()}
    return shapes


def family_of(model_type: str, tokens: Mapping[str, int], source_name: str) -> str:
    """Return the conversation family (LLMGA.md §1.1, §2): by architecture, tokenizer, and last by the
    name."""
    architecture = ARCHITECTURES[model_type].model_type
    if architecture != "llama":
        return architecture
    if "<|eot_id|>" in tokens:
        return "llama3"
    return "llama2" if "llama-2" in source_name.lower() else "vicuna"
