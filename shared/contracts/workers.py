"""What a worker says of itself, so that routing, readiness and estimates rest on live facts."""

from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field

from shared.contracts.generation import PromptEncoding, Scheduler, Task
from shared.contracts.jobs import Stage
from shared.contracts.published import Language


class Phase(StrEnum):
    """Start-up phase of a worker."""

    STARTING = "starting"
    CONVERTING = "converting"
    LOADING = "loading"
    WARMING_UP = "warming_up"
    READY = "ready"
    DRAINING = "draining"


class ServedModel(BaseModel):
    """A model that a worker serves, with the defaults that fill what a request leaves open.

    Prompt workers fill what concerns language models, render workers the rest.
    """

    model_config = ConfigDict(extra="forbid")

    name: str
    default: bool = Field(default=False, description="Whether a request that names no model gets this one.")
    tasks: list[Task] = Field(default_factory=list, description="What can be asked of it.")
    kind: str | None = Field(default=None, description="`sd15` or `sdxl`; the family for a language model.")
    source: str | None = Field(default=None, description="Name of the checkpoint, as published or as its folder's.")
    languages: list[Language] | None = Field(default=None, description="Of a published language model.")
    parameters: int | None = None
    dtype: str | None = Field(default=None, description="Number format that the model computes in.")
    quantization: str | None = Field(default=None, description="How the weights are held in fewer bits, if they are.")
    max_model_len: int | None = Field(default=None, description="Context of a language model in tokens.")
    size: str | None = Field(default=None, description="The model's own `WIDTHxHEIGHT`.")
    max_side_px: int | None = None
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    scheduler: Scheduler | None = None
    schedulers: list[Scheduler] = Field(default_factory=list)
    prompt_encodings: list[PromptEncoding] = Field(default_factory=list)
    adapters: list[str] = Field(default_factory=list, description="LoRA adapters that can be put into force.")
    restores: bool | None = Field(default=None, description="Whether a network restores what is painted in part.")
    max_prompt_tokens: dict[PromptEncoding, int] = Field(
        default_factory=dict, description="Tokens of a prompt that each encoding keeps, without begin and end."
    )


class Announcement(BaseModel):
    """A worker's latest word; it expires unless it is renewed."""

    model_config = ConfigDict(extra="forbid")

    worker: str = Field(description="`<host>-<pid>-<random>`, new at each start.")
    stage: Stage
    phase: Phase
    detail: str = Field(default="", description="What the phase is busy with, for people.")
    models: list[ServedModel] = Field(default_factory=list)
    free: int = Field(default=0, ge=0, description="Jobs that it would take now.")
    running: int = Field(default=0, ge=0)
    url: str | None = Field(default=None, description="Where gateways reach a language model; told to nobody else.")
