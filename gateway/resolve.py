"""Fill in what a request left open, and check what depends on the model. Pure: offers and the seed are passed in."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gateway.offers import Offers, RenderModel
from shared.contracts import FieldProblem, GenerationPrompt, GenerationRequest, PromptMode, Restore, Stage, Task
from shared.contracts.generation import (
    DEFAULT_EDIT_STRENGTH,
    DEFAULT_SOURCE_GUIDANCE_SCALE,
    EDIT_SCHEDULER,
    parse_size,
)
from shared.errors import InvalidRequest, ModelNotServed, NoWorker

NO_WORKER_RETRY_S = 10  # a diffusion worker loads in seconds, vLLM in less than a minute


@dataclass(frozen=True, slots=True)
class Resolved:
    """A request that a worker can carry out as it stands, and where it goes first."""

    request: GenerationRequest
    stage: Stage
    prompt: GenerationPrompt | None
    batch_key: str


def resolve(
    request: GenerationRequest, offers: Offers, *, seed: int, prompt: GenerationPrompt | None = None
) -> Resolved:
    """Return the request with every value filled in; `seed` is used if it names none.

    With a `prompt` that was written before the language model is not asked again.

    Raises:
        NoWorker: a stage that it needs has no live worker.
        ModelNotServed: no worker serves the model that it names.
        InvalidRequest: the model does not do what is asked of it.
    """
    if prompt is None and request.prompt_mode is PromptMode.VERBATIM:
        caption = request.source_prompt or None
        prompt = GenerationPrompt(text=request.instruction, source="verbatim", source_caption=caption)
    for stage in _stages(request, is_written=prompt is not None):
        if stage not in offers.staffed:
            raise _no_worker(stage)
    if prompt is None and offers.prompt_tasks is not None and request.task not in offers.prompt_tasks:
        raise _task_not_offered("The language models", offers.prompt_tasks)
    filled: dict[str, Any] = {"seed": request.seed if request.seed is not None else seed}
    batch_key = Task.PROMPT.value  # nothing is rendered
    if request.task is not Task.PROMPT:
        model = _choose(request, offers)
        filled |= _fill(request, model)
        batch_key = model.name  # what a worker can join: the renderer batches every size, seed and scheduler
    elif request.max_prompt_tokens is None:
        filled["max_prompt_tokens"] = _likely_room(request, offers)
    return Resolved(
        request=request.model_copy(update=filled),
        stage=Stage.PROMPT if prompt is None else Stage.RENDER,
        prompt=prompt,
        batch_key=batch_key,
    )


def _stages(request: GenerationRequest, *, is_written: bool) -> list[Stage]:
    stages = [] if is_written else [Stage.PROMPT]
    return stages if request.task is Task.PROMPT else [*stages, Stage.RENDER]


def _no_worker(stage: Stage) -> NoWorker:
    return NoWorker(f"No worker of the stage `{stage}` is there.", retry_after_s=NO_WORKER_RETRY_S)


def _choose(request: GenerationRequest, offers: Offers) -> RenderModel:
    if not offers.render_models:  # workers are there, but none has said yet what it serves
        raise _no_worker(Stage.RENDER)
    if request.model is None:
        model = offers.model_for(request.task)
        if model is None:
            done = {task for other in offers.render_models.values() for task in other.tasks}
            raise _task_not_offered("The diffusion models", [task for task in Task if task in done])
        return model
    model = offers.render_models.get(request.model)
    if model is None:
        raise ModelNotServed("No worker serves the model of that name.", served_models=list(offers.render_models))
    return model


def _task_not_offered(who: str, tasks: Sequence[Task]) -> InvalidRequest:
    message = f"{who[0].lower()}{who[1:]} offer{'s' if who.startswith('`') else ''} {', '.join(tasks)}"
    problem = FieldProblem(field="task", code="not_offered", message=message)
    return InvalidRequest("Nobody who is there does this task.", errors=[problem])


def _likely_room(request: GenerationRequest, offers: Offers) -> int | None:
    """Return how long a prompt may be for the model that would be taken to render it, if there is one."""
    model = offers.render_models.get(request.model or offers.default_model or "")
    return model.max_prompt_tokens.get(request.prompt_encoding) if model else None


def _fill(request: GenerationRequest, model: RenderModel) -> dict[str, Any]:
    if request.task not in model.tasks:
        raise _task_not_offered(f"`{model.name}`", model.tasks)
    size = request.size or model.size
    is_edit = request.task is Task.EDIT
    scheduler = EDIT_SCHEDULER if is_edit else request.scheduler or model.scheduler
    encoding = request.prompt_encoding
    if "prompt_encoding" not in request.model_fields_set and encoding not in model.prompt_encodings:
        encoding = next(iter(model.prompt_encodings), encoding)
    problems = []
    if max(parse_size(size)) > model.max_side_px:
        message = f"`{model.name}` makes at most {model.max_side_px} pixels per side"
        problems.append(FieldProblem(field="size", code="too_large", message=message))
    if scheduler not in model.schedulers and not is_edit:
        offered = ", ".join(model.schedulers)
        message = f"`{model.name}` offers {offered}"
        problems.append(FieldProblem(field="scheduler", code="not_offered", message=message))
    if model.prompt_encodings and encoding not in model.prompt_encodings:
        message = f"`{model.name}` offers {', '.join(model.prompt_encodings)}"
        problems.append(FieldProblem(field="prompt_encoding", code="not_offered", message=message))
    if any(adapter.name not in model.adapters for adapter in request.adapters):
        message = f"`{model.name}` offers {', '.join(model.adapters) or 'none'}"
        problems.append(FieldProblem(field="adapters", code="not_offered", message=message))
    if request.restore is Restore.ON and not model.restores:
        message = f"no restoration network is there for every worker of `{model.name}`; use auto"
        problems.append(FieldProblem(field="restore", code="not_offered", message=message))
    room = model.max_prompt_tokens.get(encoding)
    if room is not None and (request.max_prompt_tokens or 0) > room:
        message = f"`{model.name}` takes at most {room} tokens in the encoding `{encoding}`"
        problems.append(FieldProblem(field="max_prompt_tokens", code="too_large", message=message))
    if problems:
        raise InvalidRequest(f"The model `{model.name}` does not do what is asked of it.", errors=problems)
    return {
        "model": model.name,
        "size": size,
        "strength": 1.0 if request.strength is None and request.task is Task.INPAINT else request.strength,
        **(_edit_defaults(request, model) if is_edit else {}),
        "num_inference_steps": request.num_inference_steps or model.num_inference_steps,
        "guidance_scale": model.guidance_scale if request.guidance_scale is None else request.guidance_scale,
        "scheduler": scheduler,
        "prompt_encoding": encoding,
        "max_prompt_tokens": request.max_prompt_tokens or room,
    }


def _edit_defaults(request: GenerationRequest, model: RenderModel) -> dict[str, float]:
    strength, scale = request.edit_strength, request.source_guidance_scale
    # A picture that is followed more strictly on the way in than models are guided on the way out comes back in shreds.
    usual = min(DEFAULT_SOURCE_GUIDANCE_SCALE, model.guidance_scale)
    return {
        "edit_strength": DEFAULT_EDIT_STRENGTH if strength is None else strength,
        "source_guidance_scale": usual if scale is None else scale,
    }
