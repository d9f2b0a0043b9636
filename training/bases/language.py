"""A base language model from nothing, for the tiny pair: the shape of Qwen2, the words of the tiny world.

    python -m training.bases.language --recipe training/recipes/tiny-language.yaml

About a million parameters and its own byte pairs, in which the world's English words and the Chinese characters are
single tokens. It reads what is written about the world as plain text, without turns: captions, requests with their
answers, questions about captions, edits. `pretrain` and `stage1` then take `out`/checkpoint as their base.
"""

import json
import logging
import random
import re
import shutil
import sys
import tempfile
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from training.recipes.command import options
from training.recipes.recipe import Recipe

if TYPE_CHECKING:
    from torch import Tensor

    from training.runs import Batch, Fitted

CORPUS = 6_000  # documents that the tokenizer is trained on
# Shares of the kinds of documents. Most are such as need words to be carried over from what came before, which a model
# learns late: requests that name objects and no concept, and edits.
KINDS = {"request": 2, "terse": 3, "edit": 3, "questions": 2, "caption": 1, "talk": 1}
HAN = re.compile(r"([\u3400-\u9fff])")
PAD, END = "<|endoftext|>", "<|im_end|>"
ROPE_THETA = 10_000.0
ROWS = 64  # the embedding has a multiple of so many, some of them without a token, as Qwen2's: serving needs one


class LanguageRecipe(Recipe):
    """A run of this module.

    vocabulary: byte pairs, without the three special tokens. length: tokens of an example. endless: examples before
    any could come again. chinese: share of documents with Chinese requests and questions.
    """

    vocabulary: int = Field(ge=300)
    hidden: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    length: int = Field(ge=16)
    endless: int = 1 << 40
    chinese: float = Field(0.35, ge=0, le=1)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    given = options("training.bases.language", __doc__, LanguageRecipe, "language", arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    if given.dry_run:
        with tempfile.TemporaryDirectory() as folder:
            dry_run(given.recipe, given.path, Path(folder))
        return 0
    run(given.recipe, given.path)
    return 0


def run(recipe: LanguageRecipe, path: Path) -> Path:
    """Train and write the base checkpoint; return its folder."""
    fitted = fit_recipe(recipe, path)
    tensors = fitted.state_dict()
    folder = recipe.out / "checkpoint"
    if fitted.is_main:
        _export(folder, fitted.model.config, tensors)
        shutil.copyfile(recipe.out / "meta.json", folder / "meta.json")
    return folder


def dry_run(recipe: LanguageRecipe, path: Path, folder: Path) -> None:
    """Two steps of a smaller model in a folder, with a save, a resume and an export that is read again."""
    from transformers import AutoModelForCausalLM

    from training.runs.resuming import run_twice

    changes = {"out": folder / "run", "plan": recipe.plan.dry(), "hidden": 32, "inner": 48, "layers": 2, "length": 64}
    recipe = recipe.model_copy(update={**changes, "vocabulary": 400, "heads": 2, "kv_heads": 1})
    run_twice(lambda: fit_recipe(recipe, path), recipe.out)
    AutoModelForCausalLM.from_pretrained(run(recipe, path))


def fit_recipe(recipe: LanguageRecipe, path: Path) -> "Fitted":
    """Train as a recipe says; the tokenizer is made first, and kept when the run goes on later."""
    import torch

    from services.mllm.torchvision_schemas import register
    from training.runs import fit

    register()
    from transformers import Qwen2Config, Qwen2ForCausalLM

    folder = recipe.out / "checkpoint"
    tokenizer = _tokenizer(folder, recipe)
    config = Qwen2Config(
        vocab_size=-(-(tokenizer.get_vocab_size() + 1) // ROWS) * ROWS,
        hidden_size=recipe.hidden,
        intermediate_size=recipe.inner,
        num_hidden_layers=recipe.layers,
        max_window_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.kv_heads,
        max_position_embeddings=4_096,
        rope_parameters={"rope_type": "default", "rope_theta": ROPE_THETA},
        tie_word_embeddings=True,
        bos_token_id=tokenizer.token_to_id(PAD),
        eos_token_id=tokenizer.token_to_id(END),
    )
    torch.manual_seed(recipe.plan.seed)
    return fit(
        Qwen2ForCausalLM(config),
        _loss_of,
        Texts(tokenizer, recipe.length, recipe.chinese, recipe.endless),
        collate,
        recipe.plan.plan(recipe.endless),
        recipe.out,
        loaders=recipe.loaders,
        tags={"stage": recipe.stage, "recipe": path.name},
    )


class Texts:
    """Documents of the world, one after another, cut into examples of equal length: int64 (length,)."""

    def __init__(self, tokenizer: Any, length: int, chinese: float, endless: int) -> None:
        self._tokenizer, self._length, self._chinese, self._endless = tokenizer, length, chinese, endless
        self._end = tokenizer.token_to_id(PAD)

    def __len__(self) -> int:
        return self._endless

    def example(self, position: int, seed: int) -> "Tensor":
        """Return the text at a position."""
        import torch

        ids: list[int] = []
        rng = random.Random(seed)
        while len(ids) < self._length:
            ids += [*self._tokenizer.encode(document(rng.getrandbits(48), self._chinese)).ids, self._end]
        return torch.tensor(ids[: self._length])


def document(seed: int, chinese: float) -> str:
    """Return one text about the world."""
    from training.world.captions import caption_of
    from training.world.corpus import generation
    from training.world.edits import sample_edit
    from training.world.questions import questions_of, sample_talk
    from training.world.requests import sample_request
    from training.world.scenes import sample_scene
    from training.world.words import Language

    rng = random.Random(seed)
    language: Language = "zh" if rng.random() < chinese else "en"
    kind = rng.choices(tuple(KINDS), tuple(KINDS.values()))[0]
    if kind in ("request", "terse"):
        scene, request = sample_request(seed, language=language)
        while kind == "terse" and request.is_concept:
            scene, request = sample_request(rng.getrandbits(40), language=language)
        return f"{request.text}\n{generation(caption_of(scene))}"
    if kind == "edit":
        edit = sample_edit(seed, language=language)
        return "\n".join([generation(caption_of(edit.before)), edit.instruction, generation(caption_of(edit.after))])
    if kind == "talk":
        talk = sample_talk(seed, language=language)
        return f"{talk.text}\n{talk.answer}"
    scene = sample_scene(seed)
    lines = [caption_of(scene)]
    if kind == "questions":
        asked = questions_of(scene, seed, language=language)[: rng.randint(1, 4)]
        lines += [line for question in asked for line in (question.text, question.answer)]
    return "\n".join(lines)


def collate(texts: "list[Tensor]", seeds: list[int]) -> "Batch":
    """Return `ids`: int64 (b, length)."""
    import torch

    return {"ids": torch.stack(texts)}


def _loss_of(model: Any, batch: "Batch") -> Any:
    return model(input_ids=batch["ids"], labels=batch["ids"], use_cache=False).loss


def _tokenizer(folder: Path, recipe: LanguageRecipe) -> Any:
    """Read the tokenizer of an earlier start, or train it and write Qwen2's files."""
    from tokenizers import Tokenizer

    from training.minis.mllm import byte_pairs, write_byte_pairs

    if not (folder / "tokenizer.json").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        write_byte_pairs(folder, byte_pairs(corpus(recipe.chinese), size=recipe.vocabulary))
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def corpus(chinese: float) -> list[str]:
    """Return what the tokenizer is trained on: the world, the ways to ask in training, and the system's words.

    Chinese characters stand alone in it: few words come often enough to be learned as wholes, and pieces that reach
    across words would have to be.
    """
    from dataclasses import astuple

    from services.mllm.conversation import QWEN2
    from training.data.phrasings import CHINESE, ENGLISH

    pools: Iterable[str] = (
        wording
        for pools in (ENGLISH, CHINESE)
        for pool in astuple(pools)
        if isinstance(pool, tuple)
        for wording in pool
    )
    world = map(partial(document, chinese=chinese), range(-CORPUS, 0))  # the seeds of examples are not negative
    lines = [*world, *list(pools) * 3, QWEN2.opening.format(system=QWEN2.system)]
    characters = sorted(set(HAN.findall("".join(lines))))
    return [*(HAN.sub(r"\n\1\n", line) for line in lines), *characters * 3]


def _export(folder: Path, config: Any, tensors: "dict[str, Tensor]") -> None:
    from safetensors.torch import save_file

    written = {
        "architectures": ["Qwen2ForCausalLM"],
        "attention_dropout": 0.0,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": config.eos_token_id,
        "hidden_act": "silu",
        "hidden_size": config.hidden_size,
        "initializer_range": config.initializer_range,
        "intermediate_size": config.intermediate_size,
        "max_position_embeddings": config.max_position_embeddings,
        "max_window_layers": config.num_hidden_layers,
        "model_type": "qwen2",
        "num_attention_heads": config.num_attention_heads,
        "num_hidden_layers": config.num_hidden_layers,
        "num_key_value_heads": config.num_key_value_heads,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": ROPE_THETA,
        "sliding_window": None,
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": config.vocab_size,
    }
    (folder / "config.json").write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")
    sampling = {
        "do_sample": True,
        "eos_token_id": [config.eos_token_id, config.bos_token_id],
        "pad_token_id": config.bos_token_id,
        "temperature": 0.2,
    }
    (folder / "generation_config.json").write_text(json.dumps(sampling, indent=2) + "\n", encoding="utf-8")
    stored = {name: tensor.contiguous().clone() for name, tensor in tensors.items() if name != "lm_head.weight"}
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})


if __name__ == "__main__":
    sys.exit(main())
