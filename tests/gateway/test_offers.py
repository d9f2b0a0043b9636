"""Announcements put together."""

import logging

import pytest

from gateway.offers import Offers
from shared.contracts import Scheduler, Stage, Task
from shared.contracts.generation import PromptEncoding
from tests.gateway.test_resolve import worker
from tests.gateway.workers import PROMPT_MODEL, RENDER_MODEL


def test_model_of_several_workers_is_offered_with_the_strictest_limits() -> None:
    smaller = RENDER_MODEL.model_copy(
        update={
            "max_side_px": 192,
            "schedulers": [Scheduler.EULER, Scheduler.HEUN],
            "prompt_encodings": [PromptEncoding.STOCK],
            "max_prompt_tokens": {PromptEncoding.STOCK: 60},
            "tasks": [Task.TEXT_TO_IMAGE],
        }
    )
    offers = Offers.of([worker(Stage.RENDER, RENDER_MODEL, name="a"), worker(Stage.RENDER, smaller, name="b")])
    (offer,) = offers.models
    assert offer.workers == 2
    model = offers.render_models["painter"]
    assert model.max_side_px == 192
    assert set(model.schedulers) == {Scheduler.DDIM, Scheduler.EULER}  # the default is always there
    assert model.prompt_encodings == (PromptEncoding.STOCK,)
    assert model.max_prompt_tokens == {PromptEncoding.STOCK: 60}
    assert model.tasks == (Task.TEXT_TO_IMAGE,)


def test_default_is_the_model_that_says_so_or_the_first_by_name() -> None:
    plain = [RENDER_MODEL.model_copy(update={"name": name, "default": False}) for name in ("b", "a")]
    assert Offers.of([worker(Stage.RENDER, *plain)]).default_model == "a"
    assert Offers.of([worker(Stage.RENDER, *plain, RENDER_MODEL)]).default_model == "painter"
    assert Offers.of([]).default_model is None


def test_language_models_do_what_each_of_them_does_and_nothing_before_one_is_known() -> None:
    fewer = PROMPT_MODEL.model_copy(update={"name": "other", "tasks": [Task.PROMPT, Task.TEXT_TO_IMAGE]})
    offers = Offers.of([worker(Stage.PROMPT, PROMPT_MODEL, name="a"), worker(Stage.PROMPT, fewer, name="b")])
    assert offers.prompt_tasks == (Task.TEXT_TO_IMAGE, Task.PROMPT)
    assert Offers.of([worker(Stage.RENDER, RENDER_MODEL)]).prompt_tasks is None


def test_language_models_are_listed_but_do_not_render() -> None:
    offers = Offers.of([worker(Stage.PROMPT, PROMPT_MODEL)])
    assert [offer.model.name for offer in offers.models] == ["writer"]
    assert offers.render_models == {}
    assert offers.default_model is None


def test_model_without_its_defaults_is_not_offered_for_rendering(caplog: pytest.LogCaptureFixture) -> None:
    half = RENDER_MODEL.model_copy(update={"num_inference_steps": None})
    with caplog.at_level(logging.WARNING, "llmga.gateway"):
        assert Offers.of([worker(Stage.RENDER, half)]).render_models == {}
    assert "without its defaults" in caplog.text
