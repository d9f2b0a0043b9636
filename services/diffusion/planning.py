"""From a job's record to what the engine is to do: everything checked that depends on the model."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from services.diffusion.adapters import AdapterUse
from services.diffusion.conditioning.prompts import PromptPair, tokenize
from services.diffusion.credentials import SOFTWARE
from services.diffusion.editing.request import prepare_edit
from services.diffusion.inputs import Inputs
from services.diffusion.loading import LoadedModel
from services.diffusion.phases import Request
from services.diffusion.pictures import Edit, Picture
from services.diffusion.requests import is_guided, prepare
from shared.contracts import FieldProblem, GenerationRequest, Job, Task
from shared.contracts.generation import parse_size
from shared.errors import InternalError, InvalidRequest


@dataclass(frozen=True, slots=True)
class Plan:
    """A job, ready for the engine."""

    prompts: PromptPair
    requests: Sequence[Request]
    inputs: Inputs
    parameters: dict[str, Any]

    def progress(self, index: int, step: int) -> dict[str, Any]:
        """Return the data of a progress event."""
        return {"index": index, "step": step, "total_steps": self.requests[index].total_steps}


def make_plan(job: Job, model: LoadedModel, inputs: Inputs) -> Plan:
    """Return what the engine is to do for a job; runs in a worker thread.

    Raises:
        InvalidRequest: the model does not do the task, the scheduler cannot make this number of steps, or the text
            encoder has fewer layers.
        InternalError: the record lacks a value that the gateway fills in.
    """
    request, prompt = job.request, job.prompt
    if (
        prompt is None
        or request.size is None
        or request.seed is None
        or request.num_inference_steps is None
        or request.guidance_scale is None
        or request.scheduler is None
    ):
        raise InternalError("The job reached the renderer incomplete.")
    if request.task not in model.files.tasks:
        message = f"`{model.name}` offers {', '.join(model.files.tasks)}"
        raise InvalidRequest(
            "The model does not do this task.",
            errors=[FieldProblem(field="task", code="not_offered", message=message)],
        )
    if request.clip_skip > model.encoder.max_clip_skip:
        message = f"must be at most {model.encoder.max_clip_skip} for this model"
        raise InvalidRequest(
            "The text encoder does not have so many layers.",
            errors=[FieldProblem(field="clip_skip", code="out_of_bounds", message=message)],
        )
    edit = edit_of(request)
    guided = edit is not None or is_guided(request.guidance_scale, model.guidance_channels)
    adapters = chosen_adapters(request, model)
    prompts = tokenize(
        model.vocabulary,
        request.prompt_encoding,
        prompt.text,
        request.negative_prompt if guided else None,
        weighted=prompt.source != "mllm",
        second=model.second_vocabulary,
        zero_empty_negative=model.files.zero_empty_negative,
        source=None if edit is None else prompt.source_caption or "",
        weighted_source=prompt.source == "verbatim",
    )
    width, height = parse_size(request.size)
    first = Picture(
        model=model.name,
        prompts=prompts,
        width=width,
        height=height,
        seed=request.seed,
        num_inference_steps=request.num_inference_steps,
        guidance_scale=request.guidance_scale,
        scheduler=request.scheduler,
        guidance_rescale=request.guidance_rescale,
        guidance_interval=request.guidance_interval,
        clip_skip=request.clip_skip,
        timesteps=model.files.serving.timesteps_for(request.scheduler, request.num_inference_steps),
        lane=request.lane,
        deterministic=request.deterministic,
        previews=request.previews,
        source=inputs.source,
        edit=edit,
        adapters=adapters,
    )
    requests = [prepared(replace(first, seed=first.seed + index), model) for index in range(request.n)]
    parameters = {
        "task": request.task.value,
        "instruction": request.instruction,
        "prompt": prompt.text,
        "prompt_source": prompt.source,
        "prompt_model": prompt.model,
        "negative_prompt": request.negative_prompt,
        "prompt_encoding": request.prompt_encoding.value,
        "prompt_tokens": prompts.prompt.tokens,
        "truncated_tokens": prompts.prompt.truncated,
        "negative_truncated_tokens": 0 if prompts.negative is None else prompts.negative.truncated,
        "num_inference_steps": first.num_inference_steps,
        "guidance_scale": first.guidance_scale,
        "guidance_rescale": first.guidance_rescale,
        "guidance_interval": list(first.guidance_interval),
        "clip_skip": first.clip_skip,
        "adapters": [use._asdict() for use in first.adapters],
        "scheduler": first.scheduler.value,
        "size": request.size,
        "model": model.name,
        "model_sha256": model.files.sha256,
        "dtype": str(model.dtype).removeprefix("torch."),
        "software": SOFTWARE,
        **inputs.parameters,
    }
    if edit is not None:
        parameters |= {
            "source_caption": prompt.source_caption,
            "source_truncated_tokens": 0 if prompts.source is None else prompts.source.truncated,
            "edit_strength": edit.strength,
            "source_guidance_scale": edit.source_guidance_scale,
            "keep_unmasked": edit.keeps_unmasked,
        }
    return Plan(prompts, requests, inputs, parameters)


def chosen_adapters(request: GenerationRequest, model: LoadedModel) -> tuple[AdapterUse, ...]:
    """Return the adapters of a request, in the order that makes equal sets equal.

    Raises:
        InvalidRequest: the model has no adapter of that name.
    """
    known = model.adapters.sha256
    unknown = [chosen.name for chosen in request.adapters if chosen.name not in known]
    if unknown:
        message = f"`{model.name}` offers {', '.join(known) or 'none'}"
        raise InvalidRequest(
            "The model does not have this adapter.",
            errors=[FieldProblem(field="adapters", code="not_offered", message=message)],
        )
    uses = [AdapterUse(chosen.name, chosen.weight, known[chosen.name]) for chosen in request.adapters]
    return tuple(sorted(uses))


def edit_of(request: GenerationRequest) -> Edit | None:
    """Return what an edit has beside other pictures, None for other tasks.

    Raises:
        InternalError: the record lacks a value that the gateway fills in.
    """
    if request.task is not Task.EDIT:
        return None
    if request.edit_strength is None or request.source_guidance_scale is None:
        raise InternalError("The job reached the renderer incomplete.")
    return Edit(request.edit_strength, request.source_guidance_scale, request.keep_unmasked)


def prepared(picture: Picture, model: LoadedModel) -> Request:
    """Return the request of a picture, as `prepare` and `prepare_edit` make them."""
    if picture.edit is not None:
        return prepare_edit(picture, scheduler_config=model.files.scheduler, device=model.device)
    return prepare(
        picture,
        scheduler_config=model.files.scheduler,
        guidance_channels=model.guidance_channels,
        device=model.device,
    )
