"""The answers that are the gateway's own: models and readiness. Jobs, events and problems are `shared.contracts`."""

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from gateway.fleet import View
from gateway.offers import Offer, Offers
from shared.contracts import Announcement, Phase, Scheduler, Stage, Task
from shared.contracts.generation import PromptEncoding
from shared.contracts.published import PUBLISHED, Language, PublishedModel


class ModelCard(BaseModel):
    """A model that can be asked for, with the defaults of what a request may leave open."""

    model_config = ConfigDict(extra="forbid")

    id: str = Field(description="The name to ask for.", examples=["llmga-tiny-sd15"])
    object: Literal["model"] = "model"
    created: int = Field(default=0, description="Always 0: OpenAI's clients want a number, and nobody knows it.")
    owned_by: Literal["llmga-serve"] = "llmga-serve"
    stage: Stage = Field(description="`prompt`: a language model; `render`: a diffusion model.")
    ready: bool = Field(description="Whether a worker takes jobs for it now; otherwise they wait for one that starts.")
    workers: int = Field(description="Live workers that serve it.")
    default: bool = Field(description="Whether a request that names no model gets this one.")
    tasks: list[Task] = Field(default_factory=list, description="What can be asked of it.")
    kind: str | None = Field(default=None, description="`sd15` or `sdxl`; the family for a language model.")
    source: str | None = Field(default=None, description="Name of the checkpoint, as published or as its folder's.")
    languages: list[Language] | None = Field(default=None, description="Of a published language model.")
    parameters: int | None = None
    dtype: str | None = Field(default=None, description="Number format that the model computes in.")
    quantization: str | None = Field(default=None, description="How the weights are held in fewer bits, if they are.")
    max_model_len: int | None = Field(default=None, description="Context of a language model in tokens.")
    size: str | None = None
    max_side_px: int | None = None
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    scheduler: Scheduler | None = None
    schedulers: list[Scheduler] = Field(default_factory=list)
    prompt_encodings: list[PromptEncoding] = Field(default_factory=list)
    max_prompt_tokens: dict[PromptEncoding, int] = Field(default_factory=dict)
    adapters: list[str] = Field(default_factory=list, description="LoRA adapters that can be put into force.")
    restores: bool | None = Field(default=None, description="Whether a network restores what is painted in part.")

    @classmethod
    def of(cls, offer: Offer, default_model: str | None) -> Self:
        """Return the card of an offer."""
        model = offer.model.model_dump(exclude={"name", "default"})
        is_default = offer.model.default if offer.stage is Stage.PROMPT else offer.model.name == default_model
        return cls(
            id=offer.model.name,
            stage=offer.stage,
            ready=offer.ready,
            workers=offer.workers,
            default=is_default,
            **model,
        )


class ModelList(BaseModel):
    """All models that are served, in the shape of OpenAI's list; what else could be, if asked for."""

    model_config = ConfigDict(extra="forbid")

    object: Literal["list"] = "list"
    data: list[ModelCard]
    published: list[PublishedModel] | None = Field(
        default=None, description="With `?published`: every published LLMGA checkpoint, and what it takes to serve it."
    )

    @classmethod
    def of(cls, offers: Offers, *, published: bool = False) -> Self:
        """Return the list."""
        return cls(
            data=[ModelCard.of(offer, offers.default_model) for offer in offers.models],
            published=list(PUBLISHED) if published else None,
        )


class StageReadiness(BaseModel):
    """Whether a stage takes jobs now; otherwise how far its furthest worker is."""

    model_config = ConfigDict(extra="forbid")

    ready: bool
    workers: int = Field(description="Live workers.")
    phase: Phase | None = Field(default=None, description="Of the worker that is furthest; absent without a worker.")
    detail: str = ""


class Readiness(BaseModel):
    """Whether requests can be served from end to end."""

    model_config = ConfigDict(extra="forbid")

    status: Literal["ready", "not_ready", "draining"]
    missing: list[Literal["queue", "prompt", "render"]] = Field(description="What is not there.")
    stages: dict[Stage, StageReadiness]
    authentication: Literal["keys", "none"] | None = Field(
        default=None, description="With `?verbose`: whether requests need an API key."
    )
    workers: list[Announcement] | None = Field(default=None, description="With `?verbose`: what each worker says.")

    @classmethod
    def of(cls, view: View, *, draining: bool, verbose: bool = False, authentication: Literal["keys", "none"]) -> Self:
        """Return the verdict on a view of the queue."""
        announcements = view.offers.announcements if view.is_fresh else ()
        stages = {stage: _stage(stage, announcements) for stage in Stage}
        missing: list[Literal["queue", "prompt", "render"]] = [] if view.is_fresh else ["queue"]
        missing += [stage.value for stage, readiness in stages.items() if not readiness.ready]
        return cls(
            status="draining" if draining else "not_ready" if missing else "ready",
            missing=missing,
            stages=stages,
            authentication=authentication if verbose else None,
            # Where they listen is for the gateway alone.
            workers=[worker.model_copy(update={"url": None}) for worker in announcements] if verbose else None,
        )


_FURTHEST = (
    Phase.READY,
    Phase.WARMING_UP,
    Phase.LOADING,
    Phase.CONVERTING,
    Phase.STARTING,
    Phase.DRAINING,
)


def _stage(stage: Stage, announcements: tuple[Announcement, ...]) -> StageReadiness:
    workers = [worker for worker in announcements if worker.stage is stage]
    if not workers:
        return StageReadiness(ready=False, workers=0, detail="no live worker")
    furthest = min(workers, key=lambda worker: _FURTHEST.index(worker.phase))
    return StageReadiness(
        ready=furthest.phase is Phase.READY, workers=len(workers), phase=furthest.phase, detail=furthest.detail
    )
