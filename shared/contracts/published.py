"""The published LLMGA checkpoints: what can be served, and what it takes (LLMGA.md §9).

Parameter counts are those of the files where they are known, otherwise the sum of base model, projector and the
copy of the CLIP tower that every checkpoint holds (LLMGA.md §1.4, §1.5). Memory is that of the weights alone: the KV
cache and the activations come on top. In 8 and 4 bits the embeddings, the tower and the projector stay in 16 bits.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, computed_field

_TOWER = 303_507_456  # CLIP ViT-L/14 at 336 px without its projection
_GB = 1e9
_BITS8_BYTES = 1.0
_BITS4_BYTES = 0.53  # 4 bits and the double-quantised scales of nf4 (one per 64 weights)

Language = Literal["en", "zh"]


class PublishedModel(BaseModel):
    """One checkpoint on the hub."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    hub_id: str
    stage: Literal["prompt", "render"]
    family: str = Field(description="Conversation family, or `sd15` / `sdxl`.")
    languages: tuple[Language, ...] = ("en",)
    task: str | None = Field(default=None, description="`text_to_image` or `inpaint`, for diffusion checkpoints.")
    parameters: int = Field(description="Parameters in the files, to three or four digits.")
    kept_16bit: int = Field(
        default=0, exclude=True, description="Of those, the ones that quantisation leaves in 16 bits."
    )
    superseded: bool = Field(default=False, description="An older release that a newer one replaces.")

    @property
    def name(self) -> str:
        """The name without its owner, under which it is served by default."""
        return self.hub_id.rpartition("/")[2]

    def weights_gb(self, bits: Literal[4, 8, 16]) -> float:
        """Return the memory of the weights in GB (10^9 bytes) at that many bits."""
        per_weight = {16: 2.0, 8: _BITS8_BYTES, 4: _BITS4_BYTES}[bits]
        quantised = self.parameters - self.kept_16bit
        return round((quantised * per_weight + self.kept_16bit * 2.0) / _GB, 1)

    @computed_field  # type: ignore[prop-decorator]  # mypy does not know decorated properties
    @property
    def memory_gb(self) -> dict[str, float]:
        """GB of weights in bf16, 8 bits and 4 bits."""
        return {"bf16": self.weights_gb(16), "8bit": self.weights_gb(8), "4bit": self.weights_gb(4)}


def _projector(hidden: int) -> int:
    return (1024 * hidden + hidden) + (hidden * hidden + hidden)


def _mllm(
    hub_id: str,
    family: str,
    *,
    base: float,
    hidden: int,
    vocabulary: int,
    tied: bool = False,
    languages: tuple[Language, ...] = ("en",),
    superseded: bool = False,
) -> PublishedModel:
    extra = _TOWER + _projector(hidden)
    embeddings = vocabulary * hidden * (1 if tied else 2)
    return PublishedModel(
        hub_id=f"binxia/{hub_id}",
        stage="prompt",
        family=family,
        languages=languages,
        parameters=int(base) + extra,
        kept_16bit=extra + embeddings,
        superseded=superseded,
    )


def _sd(hub_id: str, kind: str, task: str, *, parameters: float, superseded: bool = False) -> PublishedModel:
    return PublishedModel(
        hub_id=f"binxia/{hub_id}",
        stage="render",
        family=kind,
        task=task,
        parameters=int(parameters),
        superseded=superseded,
    )


_BOTH: tuple[Language, ...] = ("en", "zh")
_SD15 = 1.066e9  # UNet 860 M, CLIP-L 123 M, VAE 84 M
_SDXL = 3.469e9  # UNet 2.57 B, CLIP-L 123 M, bigG 695 M, VAE 84 M

PUBLISHED: tuple[PublishedModel, ...] = (
    _mllm("llmga-vicuna-7b-v1.5-full-finetune", "vicuna", base=6.738e9, hidden=4096, vocabulary=32_000),
    _mllm("llmga-mistral_instruct-full-finetune", "mistral", base=7.242e9, hidden=4096, vocabulary=32_000),
    _mllm("llmga-llama3-8b-it-full-finetune", "llama3", base=8.030e9, hidden=4096, vocabulary=128_256),
    _mllm("llmga-Qwen2-0.5B-full-finetune", "qwen2", base=0.494e9, hidden=896, vocabulary=151_936, tied=True),
    _mllm("llmga-Qwen2-1.5B-full-finetune", "qwen2", base=1.544e9, hidden=1536, vocabulary=151_936, tied=True),
    _mllm("llmga-Qwen2-7B-full-finetune", "qwen2", base=7.616e9, hidden=3584, vocabulary=152_064),
    _mllm("llmga-Phi-3-mini-128k-full-finetune", "phi3", base=3.821e9, hidden=3072, vocabulary=32_064),
    _mllm("llmga-gemma-2b-it-full-finetune", "gemma", base=2.506e9, hidden=2048, vocabulary=256_000, tied=True),
    _mllm(
        "llmga-cn-vicuna-7b-v1.5-full-finetune",
        "vicuna",
        base=6.738e9,
        hidden=4096,
        vocabulary=32_000,
        languages=_BOTH,
    ),
    _mllm(
        "llmga-cn-llama3-8b-it-full-finetune",
        "llama3",
        base=8.030e9,
        hidden=4096,
        vocabulary=128_256,
        languages=_BOTH,
    ),
    _mllm(
        "llmga-cn-gemma-2b-it-full-finetune",
        "gemma",
        base=2.506e9,
        hidden=2048,
        vocabulary=256_000,
        tied=True,
        languages=_BOTH,
    ),
    _mllm(
        "llmga-cn-Qwen2-0.5B-full-finetune",
        "qwen2",
        base=0.494e9,
        hidden=896,
        vocabulary=151_936,
        tied=True,
        languages=_BOTH,
    ),
    _mllm(
        "llmga-llama-2-7b-chat-full-finetune",
        "llama2",
        base=6.738e9,
        hidden=4096,
        vocabulary=32_000,
        superseded=True,
    ),
    _mllm(
        "llmga-llama-2-13b-chat-full-finetune",
        "llama2",
        base=13.016e9,
        hidden=5120,
        vocabulary=32_000,
        superseded=True,
    ),
    _sd("llmga-sd15-t2i-v2", "sd15", "text_to_image", parameters=_SD15),
    _sd("llmga-sd15-inpainting-v2", "sd15", "inpaint", parameters=_SD15),
    _sd("llmga-sdxl-t2i", "sdxl", "text_to_image", parameters=_SDXL),
    _sd("llmga-sdxl-inpainting-v2", "sdxl", "inpaint", parameters=_SDXL),
    _sd("llmga-sd15-t2i", "sd15", "text_to_image", parameters=_SD15, superseded=True),
    _sd("llmga-sd15-inpainting", "sd15", "inpaint", parameters=_SD15, superseded=True),
    _sd("llmga-sdxl-inpainting", "sdxl", "inpaint", parameters=_SDXL, superseded=True),
)


def find_published(name: str) -> PublishedModel | None:
    """Return the checkpoint with a hub id, or with a name that is a hub id's last part."""
    return next((model for model in PUBLISHED if name in (model.hub_id, model.name)), None)
