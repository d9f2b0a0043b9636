"""Cost grows with the work that the models have."""

from typing import Any

import pytest

from gateway.cost import PROMPT_UNITS, charge_of
from shared.contracts import GenerationRequest, PromptMode, Task
from shared.contracts.limits import UNIT, Charge

REFERENCE: dict[str, Any] = {
    "instruction": "a",
    "prompt_mode": PromptMode.VERBATIM,
    "size": "512x512",
    "num_inference_steps": 50,
    "guidance_scale": 7.5,
}


def charge(**fields: Any) -> Charge:
    return charge_of(GenerationRequest(**(REFERENCE | fields)))


def test_the_reference_picture_costs_one_unit() -> None:
    assert charge() == Charge(prompt=0, render=UNIT)


@pytest.mark.parametrize(
    ("fields", "units"),
    [
        ({"n": 4}, 4),
        ({"size": "1024x1024"}, 4),
        ({"num_inference_steps": 25}, 0.5),
        ({"guidance_scale": 1.0}, 0.5),
        ({"guidance_interval": (0.0, 0.8)}, 0.9),
        ({"size": "1024x512", "num_inference_steps": 100, "n": 2}, 8),
    ],
)
def test_cost_is_in_proportion_to_pictures_pixels_steps_and_rows(fields: dict[str, Any], units: float) -> None:
    assert charge(**fields).render == pytest.approx(units * UNIT, abs=1)


def test_steps_that_an_image_spares_are_not_charged() -> None:
    similar = {"prompt_mode": PromptMode.REFINE, "task": Task.SIMILAR, "image": "img_1"}
    assert charge(**similar, strength=0.2).render == pytest.approx(0.2 * UNIT, abs=1)
    assert charge(**similar).render == UNIT


def test_an_edit_costs_its_way_into_noise_and_out_of_it_and_the_search_for_a_mask() -> None:
    edit = {"prompt_mode": PromptMode.REFINE, "task": Task.EDIT, "image": "img_1"}
    assert charge(**edit).render == pytest.approx(2.2 * UNIT, abs=1)
    assert charge(**edit, mask="img_2").render == 2 * UNIT


def test_a_prompt_is_charged_by_itself() -> None:
    refined = charge(prompt_mode=PromptMode.REFINE)
    assert refined == Charge(prompt=round(PROMPT_UNITS * UNIT), render=UNIT)
    assert charge_of(GenerationRequest(instruction="a", task=Task.PROMPT)) == Charge(prompt=refined.prompt)


def test_nothing_that_is_rendered_is_free() -> None:
    assert charge(size="64x64", num_inference_steps=1, guidance_scale=0.0).render >= 1
