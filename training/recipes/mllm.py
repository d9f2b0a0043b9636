"""Recipes of the language model's two stages: `pretrain` and `stage1`."""

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from training.recipes.recipe import Recipe, Settings

Family = Literal["vicuna", "llama3", "mistral", "qwen2", "phi3", "gemma"]


class JsonData(Settings):
    """A file of a published format (LLMGA.md §8), and the folder of its pictures; `at_most` of its items are used."""

    kind: Literal["text_to_image", "similar_image", "inpainting", "edit", "dialogue"]
    json_file: Path = Field(alias="json")
    images: Path | None = None
    at_most: int | None = Field(None, ge=1)


class Adapter(Settings):
    """LoRA; with `bits`, over a quantized base (QLoRA)."""

    rank: int = Field(ge=1)
    alpha: int = Field(ge=1)
    dropout: float = Field(0.0, ge=0, lt=1)
    bits: Literal[4, 8] | None = None


class MLLMRecipe(Recipe):
    """A run of `pretrain` or `stage1`.

    base, tower: folders of Hugging Face checkpoints; base may be an LLMGA checkpoint in the published layout, whose
    language model goes on learning. projector: what `pretrain` wrote, for `stage1`. shaping, side: see
    `training.data.pictures`. chinese: share of requests about pictures that are put in Chinese. tells_changes: whether
    answers to a change begin with words, as in a world of `--tell-changes`; serving then lets them.
    """

    family: Family
    base: Path
    tower: Path
    projector: Path | None = None
    data: list[JsonData] = Field(min_length=1)
    shaping: Literal["stage1", "as_is", "squared"]
    side: int = Field(512, ge=16)
    chinese: float = Field(0.0, ge=0, le=1)
    max_length: int = Field(2_048, ge=16)
    on_error: Literal["stop", "skip"] = "stop"
    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    gradient_checkpointing: bool = False
    adapter: Adapter | None = None
    tells_changes: bool = False
    saved_as: Literal["bfloat16", "float16", "float32"] = "bfloat16"

    @model_validator(mode="after")
    def _fits_its_stage(self) -> "MLLMRecipe":
        if self.stage == "pretrain" and (self.projector or self.adapter):
            raise ValueError("pretrain makes the projector and trains nothing else: no projector, no adapter")
        return self
