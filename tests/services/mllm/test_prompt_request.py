"""What direct calls may ask, and the pictures that the model is shown for it."""

import base64
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from pydantic import ValidationError

from services.mllm.conversation import Turn
from services.mllm.instructions import Writing
from services.mllm.pictures import picture_of
from services.mllm.prompt_request import PromptRequest
from shared.contracts import OutputFormat
from shared.errors import InvalidImage, InvalidRequest
from shared.media import encode_image

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 10, 3), dtype=np.uint8)


def inline(pixels: npt.NDArray[np.uint8]) -> str:
    """Return pixels as a request gives them."""
    return base64.b64encode(encode_image(pixels, OutputFormat.PNG, {})).decode()


def asked(**fields: Any) -> PromptRequest:
    return PromptRequest.model_validate(fields)


IMAGE = inline(PIXELS)
MASK = np.zeros((6, 10, 3), np.uint8)
MASK[2:4, 3:7] = 255


@pytest.mark.parametrize(
    "fields",
    [
        {"instruction": "a fox"},
        {"task": "describe", "instruction": "a fox"},
        {"task": "describe", "image": "AAAA"},
        {"task": "similar", "image": "AAAA"},
        {"task": "inpaint", "image": "AAAA", "mask": "AAAA"},
        {"task": "outpaint", "image": "AAAA", "outpaint": {"left": 8}},
        {"task": "edit", "image": "AAAA", "instruction": "red"},
        {"task": "story", "instruction": "a fox"},
        {"task": "story", "instruction": "a fox", "image": "AAAA"},
        {"task": "answer", "instruction": "why?"},
        {"task": "answer", "instruction": "why?", "image": "AAAA"},
    ],
)
def test_each_task_takes_what_it_needs_and_misses_each_part_of_it(fields: dict[str, Any]) -> None:
    asked(**fields)
    optional = {("story", "image"), ("answer", "image")}
    for name in set(fields) - {"task"}:
        rest = {key: value for key, value in fields.items() if key != name}
        if (fields.get("task"), name) in optional:
            asked(**rest)
            continue
        with pytest.raises(ValidationError):
            asked(**rest)


@pytest.mark.parametrize(
    "fields",
    [
        {"instruction": "a", "image": "AAAA"},
        {"instruction": "a", "mask": "AAAA"},
        {"instruction": "a", "outpaint": {"left": 1}},
        {"task": "similar", "image": "AAAA", "mask": "AAAA"},
        {"task": "inpaint", "image": "AAAA", "mask": "AAAA", "outpaint": {"left": 1}},
        {"task": "outpaint", "image": "AAAA", "outpaint": {}},
        {"task": "outpaint", "image": "AAAA", "outpaint": {"left": -1}},
        {"task": "outpaint", "image": "AAAA", "outpaint": {"left": 1.5}},
        {"task": "outpaint", "image": "AAAA", "outpaint": {"left": 2_049}},
        {"task": "outpaint", "image": "AAAA", "outpaint": {"front": 8}},
        {"task": "paint", "instruction": "a"},
        {"instruction": " "},
        {"instruction": "a\x00"},
        {"instruction": "a", "history": [{"question": "b"}]},
        {"instruction": "a", "history": [{"question": "b", "answer": ""}]},
        {"instruction": "a", "history": [{"question": "b", "answer": "c"}] * 65},
        {"instruction": "a", "max_prompt_tokens": 3},
        {"instruction": "a", "max_tokens": True},
        {"instruction": "a", "return_token_ids": "yes"},
    ],
)
def test_what_does_not_go_together_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        asked(**fields)


def test_the_work_has_everything_in_it() -> None:
    work = asked(
        task="edit",
        image=f"data:image/png;base64,{IMAGE}",
        instruction="red",
        history=[{"question": "hi", "answer": "hello"}],
        max_prompt_tokens=75,
    ).work()
    assert (work.writing, work.instruction, work.max_prompt_tokens) == (Writing.EDIT, "red", 75)
    assert work.history == [Turn("hi", "hello")]
    assert work.picture is not None
    assert work.picture.key == picture_of(PIXELS).key


def test_what_is_to_be_painted_is_black_in_the_picture() -> None:
    work = asked(task="inpaint", image=IMAGE, mask=inline(MASK)).work()
    expected = PIXELS.copy()
    expected[2:4, 3:7] = 0
    assert work.picture is not None
    assert work.picture.key == picture_of(expected).key


def test_the_picture_is_continued_in_black() -> None:
    border = {"left": 2, "top": 1, "right": 3, "bottom": 4}
    work = asked(task="outpaint", image=IMAGE, outpaint=border).work()
    expected = np.zeros((11, 15, 3), np.uint8)
    expected[1:7, 2:12] = PIXELS
    assert work.picture is not None
    assert work.picture.key == picture_of(expected).key


def test_a_mask_of_another_size_is_refused() -> None:
    with pytest.raises(InvalidRequest) as caught:
        asked(task="inpaint", image=IMAGE, mask=inline(MASK[:, :-1])).work()
    (problem,) = caught.value.errors
    assert (problem.field, problem.code) == ("mask", "wrong_size")
    assert "10x6" in problem.message


def test_a_canvas_beyond_the_largest_picture_is_refused() -> None:
    long = inline(np.zeros((1, 8_000, 3), np.uint8))
    with pytest.raises(InvalidRequest) as caught:
        asked(task="outpaint", image=long, outpaint={"left": 200}).work()
    assert [(problem.field, problem.code) for problem in caught.value.errors] == [("outpaint", "too_large")]


@pytest.mark.parametrize("name", ["image", "mask"])
@pytest.mark.parametrize("text", ["AAAA", "http://127.0.0.1/a.png", "img_" + "0" * 40])
def test_what_is_no_picture_is_refused(name: str, text: str) -> None:
    with pytest.raises(InvalidImage):
        asked(**{"task": "inpaint", "image": IMAGE, "mask": inline(MASK), name: text}).work()
