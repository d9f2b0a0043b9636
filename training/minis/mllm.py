"""A mini language model in the published LLMGA layout (LLMGA.md §1): family qwen2, 1.5 M parameters.

Everything that makes a published checkpoint awkward is here: `llava_Qwen2` with the keys of §1.2, the doubled
prefix of the tower's copy, the projector's names, a tied head that is stored once, and embedding rows beyond
the tokenizer's last id. The weights are random; with `teach_steps` the language model learns to answer
requests for pictures by the `<gen_image>` protocol, from templated pairs, in well under a minute on two
cores.
"""

import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from services.mllm.conversation import QWEN2, Turn, render
from services.mllm.torchvision_schemas import register
from training.minis.requests import draw, text
from training.runs.records import write_json

VOCABULARY = 1_024  # tokens that are learned from our text; the special ones come on top
SPARE_ROWS = 61  # Qwen2 has 290 or 418 rows that no token uses
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
HIDDEN = 128
TOWER = "clip-mini"  # folder of the tower's configuration, as `mm_vision_tower` names it
BATCH = 8
LEARNING_RATE = 4e-3  # far above that of big models: 1.5 M parameters, a few hundred steps

# Qwen2's splitting rule: contractions, letters, single digits, signs, white space.
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

Progress = Callable[[str], None]


def build_mllm(
    folder: Path,
    *,
    seed: int = 0,
    teach_steps: int = 0,
    dtype: torch.dtype = torch.bfloat16,
    progress: Progress = lambda _: None,
) -> None:
    """Write a checkpoint to an empty or missing folder.

    Equal seeds, steps and dtypes give equal weights on one machine.
    """
    register()
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = byte_pairs()
    write_byte_pairs(folder, tokenizer)
    end, pad = _id(tokenizer, "<|im_end|>"), _id(tokenizer, "<|endoftext|>")
    rows = tokenizer.get_vocab_size() + SPARE_ROWS
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        language_model = _language_model(rows, end, pad)
        tower = new_tower()
        tensors = _projector(tower.config.hidden_size)
        if teach_steps:
            with _one_thread():
                teach(language_model, tokenizer, steps=teach_steps, seed=seed, progress=progress)
    for name, tensor in language_model.state_dict().items():
        if name != "lm_head.weight":  # tied: stored once, as the embedding
            tensors[name] = tensor
    for name, tensor in tower.state_dict().items():
        bare = name.removeprefix("vision_model.")
        tensors[f"model.vision_tower.vision_tower.vision_model.{bare}"] = tensor
    stored = {name: tensor.detach().to(dtype).contiguous().clone() for name, tensor in tensors.items()}
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    write_json(folder / "config.json", _config(language_model.config, tower.config, dtype))
    write_json(
        folder / "generation_config.json",
        {
            "do_sample": True,
            "eos_token_id": [end, pad],
            "pad_token_id": pad,
            "temperature": 0.7,
            "top_k": 20,
            "top_p": 0.8,
        },
    )
    write_tower(folder / TOWER, tower.config)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Compute on one thread: these matrices gain little from a second, and lose much to it on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def teach(language_model: Any, tokenizer: Tokenizer, *, steps: int, seed: int, progress: Progress) -> None:
    """Train on templated pairs; only the answer and its terminator are learned, as in LLMGA's stage 1."""
    batches = _batches(tokenizer, seed)
    optimizer = torch.optim.AdamW(language_model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps, pct_start=0.1)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # matrices this small lose more by sharing the work than they gain
    language_model.train()
    for step in range(1, steps + 1):
        ids, labels = next(batches)
        loss = language_model(input_ids=ids, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(language_model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 25 == 0 or step == steps:
            progress(f"step {step} of {steps}, loss {loss.item():.2f}")
    language_model.eval()
    torch.set_num_threads(threads)


def _batches(tokenizer: Tokenizer, seed: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    rng = random.Random(seed)
    pad = _id(tokenizer, "<|endoftext|>")
    while True:
        rows = []
        for _ in range(BATCH):
            pair = draw(rng)
            (question,) = render(QWEN2, [Turn(pair.request)])
            answer = f"<gen_image> {pair.prompt} </gen_image>{QWEN2.terminator}"
            asked, answered = tokenizer.encode(question).ids, tokenizer.encode(answer).ids
            rows.append((asked + answered, [-100] * len(asked) + answered))
        length = max(len(ids) for ids, _ in rows)
        yield (
            torch.tensor([ids + [pad] * (length - len(ids)) for ids, _ in rows]),
            torch.tensor([labels + [-100] * (length - len(labels)) for _, labels in rows]),
        )


def byte_pairs(lines: Iterable[str] | None = None, *, size: int = VOCABULARY) -> Tokenizer:
    """Return a tokenizer of Qwen2's kind, trained on these lines, or on our text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        min_frequency=2,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*text(), QWEN2.system] if lines is None else lines, trainer)
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    return tokenizer


def write_byte_pairs(folder: Path, tokenizer: Tokenizer) -> None:
    """Write such a tokenizer in Qwen2's files."""
    tokenizer.save(str(folder / "tokenizer.json"))
    tokenizer.model.save(str(folder))  # vocab.json and merges.txt
    added = {
        str(_id(tokenizer, token)): {
            "content": token,
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": True,
        }
        for token in SPECIAL_TOKENS
    }
    write_json(
        folder / "tokenizer_config.json",
        {
            "add_prefix_space": False,
            "added_tokens_decoder": added,
            "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
            "bos_token": None,
            "clean_up_tokenization_spaces": False,
            "eos_token": "<|im_end|>",
            "errors": "replace",
            "model_max_length": 2_048,
            "pad_token": "<|endoftext|>",
            "padding_side": "right",
            "split_special_tokens": False,
            "tokenizer_class": "Qwen2Tokenizer",
            "unk_token": None,
        },
    )


def _id(tokenizer: Tokenizer, token: str) -> int:
    token_id = tokenizer.token_to_id(token)
    assert token_id is not None, token
    return int(token_id)


def _language_model(rows: int, end: int, pad: int) -> Any:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=rows,
        hidden_size=HIDDEN,
        intermediate_size=3 * HIDDEN,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4_096,
        tie_word_embeddings=True,
        bos_token_id=pad,
        eos_token_id=end,
        initializer_range=0.06,  # wide enough that an untaught model's answers depend on what it reads
    )
    return Qwen2ForCausalLM(config).eval()


def new_tower() -> Any:
    """Return a CLIP tower for pictures of 56 pixels, with random weights."""
    from transformers import CLIPVisionConfig, CLIPVisionModel

    config = CLIPVisionConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=56,
        patch_size=14,
        projection_dim=64,
        initializer_factor=4.0,
    )
    return CLIPVisionModel(config).eval()


def _projector(tower_hidden: int) -> dict[str, torch.Tensor]:
    first, last = torch.nn.Linear(tower_hidden, HIDDEN), torch.nn.Linear(HIDDEN, HIDDEN)
    return {
        "model.mm_projector.0.weight": first.weight,
        "model.mm_projector.0.bias": first.bias,
        "model.mm_projector.2.weight": last.weight,
        "model.mm_projector.2.bias": last.bias,
    }


def _config(language: Any, tower: Any, dtype: torch.dtype) -> dict[str, Any]:
    return {
        "architectures": ["LlavaQwen2ForCausalLM"],
        "attention_dropout": 0.0,
        "bos_token_id": language.bos_token_id,
        "eos_token_id": language.eos_token_id,
        "freeze_mm_mlp_adapter": False,
        "hidden_act": "silu",
        "hidden_size": language.hidden_size,
        "image_aspect_ratio": "resizesquare",
        "initializer_range": 0.02,
        "intermediate_size": language.intermediate_size,
        "max_position_embeddings": language.max_position_embeddings,
        "max_window_layers": language.num_hidden_layers,
        "mm_hidden_size": tower.hidden_size,
        "mm_patch_merge_type": "flat",
        "mm_projector_lr": None,
        "mm_projector_type": "mlp2x_gelu",
        "mm_use_im_patch_token": False,
        "mm_use_im_start_end": False,
        "mm_vision_select_feature": "patch",
        "mm_vision_select_layer": -2,
        "mm_vision_tower": TOWER,
        "model_type": "llava_Qwen2",
        "num_attention_heads": language.num_attention_heads,
        "num_hidden_layers": language.num_hidden_layers,
        "num_key_value_heads": language.num_key_value_heads,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10_000.0,
        "sliding_window": None,
        "tie_word_embeddings": True,
        "tokenizer_model_max_length": 2_048,
        "tokenizer_padding_side": "right",
        "torch_dtype": str(dtype).removeprefix("torch."),
        "transformers_version": "4.41.0",
        "tune_mm_mlp_adapter": False,
        "use_cache": True,
        "use_mm_proj": True,
        "use_sliding_window": False,
        "vocab_size": language.vocab_size,
    }


def write_tower(folder: Path, config: Any) -> None:
    """Write the configuration files of a tower."""
    folder.mkdir(exist_ok=True)
    side = config.image_size
    write_json(
        folder / "config.json",
        {
            "architectures": ["CLIPVisionModel"],
            "hidden_act": "quick_gelu",
            "hidden_size": config.hidden_size,
            "image_size": side,
            "intermediate_size": config.intermediate_size,
            "layer_norm_eps": 1e-5,
            "model_type": "clip_vision_model",
            "num_attention_heads": config.num_attention_heads,
            "num_channels": 3,
            "num_hidden_layers": config.num_hidden_layers,
            "patch_size": config.patch_size,
            "projection_dim": config.projection_dim,
        },
    )
    write_json(
        folder / "preprocessor_config.json",
        {
            "crop_size": side,
            "do_center_crop": True,
            "do_normalize": True,
            "do_resize": True,
            "feature_extractor_type": "CLIPFeatureExtractor",
            "image_mean": [0.48145466, 0.4578275, 0.40821073],
            "image_std": [0.26862954, 0.26130258, 0.27577711],
            "resample": 3,
            "size": side,
        },
    )
