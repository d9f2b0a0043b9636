"""Filling in what a request left open, and refusing what the model does not do."""

from typing import Any

import pytest

from gateway.offers import Offers
from gateway.resolve import resolve
from shared.contracts import (
    Announcement,
    GenerationRequest,
    Lane,
    OutputFormat,
    Phase,
    PromptMode,
    Restore,
    Scheduler,
    ServedModel,
    Stage,
    Task,
)
from shared.contracts.generation import PromptEncoding
from shared.errors import InvalidRequest, ModelNotServed, NoWorker
from tests.gateway.workers import PROMPT_MODEL, RENDER_MODEL


def worker(stage: Stage, *models: ServedModel, phase: Phase = Phase.READY, name: str = "") -> Announcement:
    return Announcement(worker=name or f"w-{stage}", stage=stage, phase=phase, models=list(models))


BOTH = Offers.of([worker(Stage.PROMPT, PROMPT_MODEL), worker(Stage.RENDER, RENDER_MODEL)])


def test_every_open_value_is_filled() -> None:
    resolved = resolve(GenerationRequest(instruction="a"), BOTH, seed=5)
    optional = {"deadline_s", "image", "mask", "webhook", "outpaint", "strength", "output_compression"}
    optional |= {"edit_strength", "source_guidance_scale"}
    assert None not in resolved.request.model_dump(exclude=optional).values()
    assert resolved.request.seed == 5
    assert resolved.stage is Stage.PROMPT
    assert resolved.prompt is None
    assert resolved.batch_key == "painter"


def test_what_the_client_chose_is_kept() -> None:
    wanted = GenerationRequest(
        instruction="a",
        negative_prompt="b",
        model="painter",
        size="64x256",
        n=3,
        seed=0,
        num_inference_steps=2,
        guidance_scale=0,
        scheduler=Scheduler.EULER,
        prompt_encoding=PromptEncoding.STOCK,
        max_prompt_tokens=40,
        lane=Lane.BATCH,
        deadline_s=3,
        deterministic=False,
        output_format=OutputFormat.WEBP,
    )
    assert resolve(wanted, BOTH, seed=5).request == wanted


def test_verbatim_needs_no_language_model_and_prompt_task_no_diffusion_model() -> None:
    verbatim = GenerationRequest(instruction="a", prompt_mode=PromptMode.VERBATIM)
    only_render = Offers.of([worker(Stage.RENDER, RENDER_MODEL)])
    resolved = resolve(verbatim, only_render, seed=1)
    assert resolved.stage is Stage.RENDER
    assert resolved.prompt is not None
    assert (resolved.prompt.text, resolved.prompt.source) == ("a", "verbatim")
    with pytest.raises(NoWorker, match="prompt"):
        resolve(GenerationRequest(instruction="a"), only_render, seed=1)

    only_prompt = Offers.of([worker(Stage.PROMPT, PROMPT_MODEL)])
    resolved = resolve(GenerationRequest(instruction="a", task=Task.PROMPT), only_prompt, seed=1)
    assert resolved.batch_key == "prompt"
    with pytest.raises(NoWorker, match="render"):
        resolve(GenerationRequest(instruction="a"), only_prompt, seed=1)


def test_worker_that_starts_counts_and_one_that_drains_does_not() -> None:
    request = GenerationRequest(instruction="a", task=Task.PROMPT)
    resolve(request, Offers.of([worker(Stage.PROMPT, PROMPT_MODEL, phase=Phase.LOADING)]), seed=1)
    with pytest.raises(NoWorker):
        resolve(request, Offers.of([worker(Stage.PROMPT, PROMPT_MODEL, phase=Phase.DRAINING)]), seed=1)


def test_worker_that_has_not_said_what_it_serves_is_not_there_yet() -> None:
    offers = Offers.of([worker(Stage.PROMPT, PROMPT_MODEL), worker(Stage.RENDER, phase=Phase.STARTING)])
    with pytest.raises(NoWorker):
        resolve(GenerationRequest(instruction="a"), offers, seed=1)


def test_model_that_nobody_serves_is_refused_with_those_that_are() -> None:
    with pytest.raises(ModelNotServed) as caught:
        resolve(GenerationRequest(instruction="a", model="other"), BOTH, seed=1)
    assert caught.value.served_models == ["painter"]


def test_an_adapter_has_to_be_the_model_s_on_all_of_its_workers() -> None:
    chalk = RENDER_MODEL.model_copy(update={"adapters": ["chalk"]})
    both = RENDER_MODEL.model_copy(update={"adapters": ["ink", "chalk"]})
    offers = Offers.of([worker(Stage.RENDER, both, name="w-1"), worker(Stage.RENDER, chalk, name="w-2")])

    def wanted(*names: str) -> GenerationRequest:
        adapters = [{"name": name, "weight": 0.5} for name in names]
        return GenerationRequest.model_validate({"instruction": "a", "prompt_mode": "verbatim", "adapters": adapters})

    assert resolve(wanted("chalk"), offers, seed=1).request.adapters == wanted("chalk").adapters
    with pytest.raises(InvalidRequest) as caught:
        resolve(wanted("chalk", "ink"), offers, seed=1)
    assert [(error.field, error.code, error.message) for error in caught.value.errors] == [
        ("adapters", "not_offered", "`painter` offers chalk")
    ]


def test_all_that_the_model_does_not_do_is_named() -> None:
    stock_only = RENDER_MODEL.model_copy(update={"prompt_encodings": [PromptEncoding.STOCK]})
    offers = Offers.of([worker(Stage.PROMPT, PROMPT_MODEL), worker(Stage.RENDER, stock_only)])
    wanted = GenerationRequest(
        instruction="a",
        size="264x64",
        scheduler=Scheduler.LCM,
        prompt_encoding=PromptEncoding.LLMGA,
        max_prompt_tokens=226,
    )
    with pytest.raises(InvalidRequest) as caught:
        resolve(wanted, offers, seed=1)
    assert [(error.field, error.code) for error in caught.value.errors] == [
        ("size", "too_large"),
        ("scheduler", "not_offered"),
        ("prompt_encoding", "not_offered"),
        ("max_prompt_tokens", "too_large"),
    ]
    # Left open, the model's own encoding is taken.
    assert resolve(GenerationRequest(instruction="a"), offers, seed=1).request.prompt_encoding is PromptEncoding.STOCK


IMAGE = "img_" + "0" * 40


def test_a_prompt_may_be_as_long_as_the_model_s_text_encoder_takes() -> None:
    def room(**wishes: Any) -> int | None:
        wanted = GenerationRequest.model_validate({"instruction": "a", **wishes})
        return resolve(wanted, BOTH, seed=1).request.max_prompt_tokens

    assert room() == 225
    assert room(prompt_encoding="stock") == 75
    assert room(max_prompt_tokens=30) == 30
    # Of a prompt alone: as for the model that would render it.
    assert room(task="prompt", prompt_encoding="stock") == 75
    assert room(task="prompt", model="other") is None
    only_prompt = Offers.of([worker(Stage.PROMPT, PROMPT_MODEL)])
    assert (
        resolve(GenerationRequest(instruction="a", task=Task.PROMPT), only_prompt, seed=1).request.max_prompt_tokens
        is None
    )


@pytest.mark.parametrize(
    ("prompt_tasks", "render_tasks", "who"),
    [
        ([Task.TEXT_TO_IMAGE, Task.PROMPT], [*Task], "the language models offer text_to_image, prompt"),
        ([*Task], [Task.TEXT_TO_IMAGE], "the diffusion models offer text_to_image"),
    ],
)
def test_task_that_nobody_does_is_refused_with_those_that_are_done(
    prompt_tasks: list[Task], render_tasks: list[Task], who: str
) -> None:
    offers = Offers.of(
        [
            worker(Stage.PROMPT, PROMPT_MODEL.model_copy(update={"tasks": prompt_tasks})),
            worker(Stage.RENDER, RENDER_MODEL.model_copy(update={"tasks": render_tasks})),
        ]
    )
    with pytest.raises(InvalidRequest) as caught:
        resolve(GenerationRequest(task=Task.SIMILAR, image=IMAGE), offers, seed=1)
    (problem,) = caught.value.errors
    assert (problem.field, problem.code, problem.message) == ("task", "not_offered", who)
    resolve(GenerationRequest(instruction="a"), offers, seed=1)


def test_language_model_that_has_not_said_what_it_does_is_waited_for() -> None:
    offers = Offers.of([worker(Stage.PROMPT, phase=Phase.CONVERTING), worker(Stage.RENDER, RENDER_MODEL)])
    assert resolve(GenerationRequest(task=Task.SIMILAR, image=IMAGE), offers, seed=1).stage is Stage.PROMPT


def test_a_task_gets_the_model_that_is_made_for_it_and_otherwise_the_default_one() -> None:
    inpainter = RENDER_MODEL.model_copy(
        update={"name": "inpainter", "default": False, "tasks": [Task.INPAINT, Task.OUTPAINT]}
    )
    both = Offers.of([worker(Stage.PROMPT, PROMPT_MODEL), worker(Stage.RENDER, RENDER_MODEL, inpainter)])
    inpaint = GenerationRequest(task=Task.INPAINT, image=IMAGE, mask=IMAGE)
    assert resolve(inpaint, both, seed=1).request.model == "inpainter"
    assert resolve(inpaint, BOTH, seed=1).request.model == "painter"
    assert resolve(GenerationRequest(instruction="a"), both, seed=1).request.model == "painter"
    chosen = inpaint.model_copy(update={"model": "painter"})
    assert resolve(chosen, both, seed=1).request.model == "painter"
    with pytest.raises(InvalidRequest) as refused:
        resolve(GenerationRequest(instruction="a", model="inpainter"), both, seed=1)
    (problem,) = refused.value.errors
    assert (problem.field, problem.message) == ("task", "`inpainter` offers inpaint, outpaint")


def test_an_inpaint_makes_all_its_steps_and_a_similar_picture_starts_from_noise_unless_told_otherwise() -> None:
    inpaint = GenerationRequest(task=Task.INPAINT, image=IMAGE, mask=IMAGE)
    similar = GenerationRequest(task=Task.SIMILAR, image=IMAGE)
    assert resolve(inpaint, BOTH, seed=1).request.strength == 1.0
    assert resolve(similar, BOTH, seed=1).request.strength is None
    for wanted in (inpaint, similar):
        told = wanted.model_copy(update={"strength": 0.4})
        assert resolve(told, BOTH, seed=1).request.strength == 0.4


def test_a_restoration_that_is_insisted_on_needs_a_network_at_every_worker_of_the_model() -> None:
    request = GenerationRequest(task=Task.INPAINT, image=IMAGE, mask=IMAGE, restore=Restore.ON)
    with_network = worker(Stage.RENDER, RENDER_MODEL.model_copy(update={"restores": True}))
    without = worker(Stage.RENDER, RENDER_MODEL)
    writers = worker(Stage.PROMPT, PROMPT_MODEL)
    assert resolve(request, Offers.of([writers, with_network]), seed=1).request.restore is Restore.ON
    mixed = Offers.of([writers, with_network, without])
    with pytest.raises(InvalidRequest) as refused:
        resolve(request, mixed, seed=1)
    assert [(problem.field, problem.code) for problem in refused.value.errors] == [("restore", "not_offered")]
    assert resolve(request.model_copy(update={"restore": Restore.AUTO}), mixed, seed=1).stage is Stage.PROMPT


def test_an_edit_gets_what_the_original_edits_with() -> None:
    edit = GenerationRequest(task=Task.EDIT, image=IMAGE, instruction="at night")
    resolved = resolve(edit, BOTH, seed=1)
    request = resolved.request
    assert (request.edit_strength, request.source_guidance_scale) == (0.75, 3.5)
    assert request.scheduler is Scheduler.DPMPP_2M_SDE, "whatever the model offers for other tasks"
    assert (resolved.stage, resolved.prompt) == (Stage.PROMPT, None)
    GenerationRequest.model_validate_json(request.model_dump_json())
    mild = RENDER_MODEL.model_copy(update={"guidance_scale": 2.0})
    request = resolve(edit, Offers.of([worker(Stage.PROMPT, PROMPT_MODEL), worker(Stage.RENDER, mild)]), seed=1).request
    assert request.source_guidance_scale == 2.0, "not stricter than the model is guided"
    chosen = edit.model_copy(update={"edit_strength": 0.5, "source_guidance_scale": 0.0})
    request = resolve(chosen, BOTH, seed=1).request
    assert (request.edit_strength, request.source_guidance_scale) == (0.5, 0.0)


def test_an_edit_with_both_captions_needs_no_language_model() -> None:
    edit = GenerationRequest(
        task=Task.EDIT, image=IMAGE, instruction="a hill at night", source_prompt="a hill", prompt_mode="verbatim"
    )
    resolved = resolve(edit, Offers.of([worker(Stage.RENDER, RENDER_MODEL)]), seed=1)
    assert resolved.stage is Stage.RENDER
    assert resolved.prompt is not None
    assert (resolved.prompt.text, resolved.prompt.source_caption) == ("a hill at night", "a hill")
