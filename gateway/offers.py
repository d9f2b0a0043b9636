"""What the live workers offer, put together from their announcements.

Several workers may serve a model of one name. What the gateway promises must hold on each of them, since any may
claim the job: limits are the strictest, schedulers and encodings those that all have. A worker that drains takes no
more jobs and so offers nothing; one that still starts offers what it will serve, because a job can wait for it.
"""

import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from shared.contracts import Announcement, Phase, Scheduler, ServedModel, Stage, Task
from shared.contracts.generation import MAX_PROMPT_TOKENS, MAX_SIDE_PX, MAX_STEPS, PromptEncoding

_log = logging.getLogger("llmga.gateway")


@dataclass(frozen=True, slots=True)
class Offer:
    """A model as all its workers serve it."""

    stage: Stage
    model: ServedModel
    workers: int
    ready: bool


@dataclass(frozen=True, slots=True)
class RenderModel:
    """A diffusion model with everything that a request may leave open."""

    name: str
    tasks: tuple[Task, ...]
    size: str
    max_side_px: int
    num_inference_steps: int
    guidance_scale: float
    scheduler: Scheduler
    schedulers: tuple[Scheduler, ...]
    prompt_encodings: tuple[PromptEncoding, ...]
    adapters: tuple[str, ...]
    restores: bool
    max_prompt_tokens: Mapping[PromptEncoding, int]


@dataclass(frozen=True, slots=True)
class Offers:
    """Everything that can be asked for now."""

    announcements: tuple[Announcement, ...] = ()
    models: tuple[Offer, ...] = ()
    render_models: Mapping[str, RenderModel] = field(default_factory=dict)
    default_model: str | None = None
    # What every language model does, as any may claim a job; `None` before one has said what it does.
    prompt_tasks: tuple[Task, ...] | None = None
    staffed: frozenset[Stage] = frozenset()  # stages with a worker that takes jobs, or will when it has started

    @classmethod
    def of(cls, announcements: Iterable[Announcement]) -> "Offers":
        """Put the announcements together."""
        live = tuple(sorted(announcements, key=lambda announcement: announcement.worker))
        staying = [announcement for announcement in live if announcement.phase is not Phase.DRAINING]
        models = tuple(_offers(staying))
        render_models = {}
        for offer in models:
            if offer.stage is Stage.RENDER and (model := _render_model(offer.model)):
                render_models[model.name] = model
        defaults = [offer.model.name for offer in models if offer.model.default and offer.model.name in render_models]
        return cls(
            announcements=live,
            models=models,
            render_models=render_models,
            default_model=next(iter(defaults or render_models), None),
            prompt_tasks=_common_tasks([offer.model for offer in models if offer.stage is Stage.PROMPT]),
            staffed=frozenset(announcement.stage for announcement in staying),
        )

    def model_for(self, task: Task) -> RenderModel | None:
        """Return the model for a request that names none: one made for the task alone, or else the default one."""
        able = [model for model in self.render_models.values() if task in model.tasks]
        return min(able, key=lambda model: (len(model.tasks), model.name != self.default_model), default=None)


def _offers(announcements: Sequence[Announcement]) -> Iterable[Offer]:
    found: dict[tuple[Stage, str], list[tuple[ServedModel, bool]]] = defaultdict(list)
    for worker in announcements:
        for model in worker.models:
            found[worker.stage, model.name].append((model, worker.phase is Phase.READY))
    for (stage, _), served in sorted(found.items()):
        yield Offer(
            stage=stage,
            model=_strictest([model for model, _ in served]),
            workers=len(served),
            ready=any(ready for _, ready in served),
        )


def _strictest(models: Sequence[ServedModel]) -> ServedModel:
    first = models[0]
    sides = [model.max_side_px for model in models if model.max_side_px is not None]
    tokens = [model.max_prompt_tokens for model in models]
    return first.model_copy(
        update={
            "default": any(model.default for model in models),
            "tasks": list(_common_tasks(models) or ()),
            "max_side_px": min(sides, default=None),
            "schedulers": [item for item in first.schedulers if all(item in model.schedulers for model in models)],
            "prompt_encodings": [
                item for item in first.prompt_encodings if all(item in model.prompt_encodings for model in models)
            ],
            "adapters": [item for item in first.adapters if all(item in model.adapters for model in models)],
            "restores": None if first.restores is None else all(model.restores for model in models),
            "max_prompt_tokens": {
                item: min(counts[item] for counts in tokens)
                for item in first.max_prompt_tokens
                if all(item in counts for counts in tokens)
            },
        }
    )


def _common_tasks(models: Sequence[ServedModel]) -> tuple[Task, ...] | None:
    if not models:
        return None
    return tuple(task for task in Task if all(task in model.tasks for model in models))


def _render_model(model: ServedModel) -> RenderModel | None:
    if (
        model.size is None
        or model.num_inference_steps is None
        or model.guidance_scale is None
        or model.scheduler is None
    ):
        _log.warning("a worker announces a model without its defaults", extra={"model": model.name})
        return None
    schedulers = model.schedulers if model.scheduler in model.schedulers else [model.scheduler, *model.schedulers]
    return RenderModel(
        name=model.name,
        tasks=tuple(model.tasks),
        size=model.size,
        max_side_px=model.max_side_px or MAX_SIDE_PX,
        num_inference_steps=min(model.num_inference_steps, MAX_STEPS),
        guidance_scale=model.guidance_scale,
        scheduler=model.scheduler,
        schedulers=tuple(schedulers),
        prompt_encodings=tuple(model.prompt_encodings),
        adapters=tuple(model.adapters),
        restores=bool(model.restores),
        max_prompt_tokens={item: min(count, MAX_PROMPT_TOKENS) for item, count in model.max_prompt_tokens.items()},
    )
