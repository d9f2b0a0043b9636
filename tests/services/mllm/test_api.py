"""`POST /v1/generation-prompts` on the real server: tasks, pictures, history, and what is refused."""

import base64
import json
from typing import Any

import httpx
import numpy as np
import pytest

from clients.sse import messages
from shared.contracts import OutputFormat
from shared.media import encode_image
from tests.services.mllm.running import RunningService

pytestmark = pytest.mark.slow

PIXELS = np.random.default_rng(3).integers(0, 256, (40, 60, 3), dtype=np.uint8)
IMAGE = base64.b64encode(encode_image(PIXELS, OutputFormat.PNG, {})).decode()
MASK = base64.b64encode(encode_image(np.full((40, 60, 3), 255, np.uint8), OutputFormat.PNG, {})).decode()


def written(service: RunningService, **body: Any) -> dict[str, Any]:
    """Return the answer to a call that succeeds."""
    response = service.write(**{"temperature": 0, "max_tokens": 48, "return_token_ids": True, **body})
    assert response.status_code == 200, response.text
    return dict(response.json())


@pytest.mark.parametrize(
    "body",
    [
        {"task": "similar"},
        {"task": "similar", "instruction": "at night"},
        {"task": "similar", "instruction": "夜晚"},
        {"task": "describe"},
        {"task": "inpaint", "mask": MASK},
        {"task": "outpaint", "outpaint": {"left": 8, "bottom": 16}},
        {"task": "edit", "instruction": "make it red"},
        {"task": "story", "instruction": "a story of a cat"},
        {"task": "answer", "instruction": "how many cats are there?"},
    ],
    ids=lambda body: body["task"],
)
def test_every_task_with_a_picture_is_answered(service: RunningService, body: dict[str, Any]) -> None:
    answer = written(service, image=IMAGE, seed=5, **body)
    assert answer["text"]
    assert answer["dropped_turns"] == 0
    if body["task"] == "answer":
        assert "prompt" not in answer
        assert answer["prompts"] == []
    else:
        assert answer["prompt"] == answer["prompts"][0]
        assert answer["prompt"]["text"]
    assert ("source" in answer) is (body["task"] == "edit")


def test_the_picture_is_one_place_in_the_ids_and_words_alone_have_none(service: RunningService) -> None:
    with_picture = written(service, task="answer", instruction="what is this?", image=IMAGE)["prompt_token_ids"]
    without = written(service, task="answer", instruction="what is this?")["prompt_token_ids"]
    added = set(with_picture) - set(without)
    (image_token,) = [token for token in added if with_picture.count(token) == 1 and token > max(without)]
    assert image_token not in without


def test_a_black_mask_changes_what_the_model_says_of_a_picture(service: RunningService) -> None:
    def values(**body: Any) -> list[dict[str, float]]:
        return list(written(service, image=IMAGE, logprobs=3, **body)["logprobs"])

    hole = np.zeros((40, 60, 3), np.uint8)
    hole[:20] = 255
    part = base64.b64encode(encode_image(hole, OutputFormat.PNG, {})).decode()
    all_black, half_black = values(task="inpaint", mask=MASK), values(task="inpaint", mask=part)
    assert all_black == values(task="inpaint", mask=MASK)
    assert all_black[0] != half_black[0]


def test_history_goes_before_and_the_answer_can_be_the_next_call_s_history(service: RunningService) -> None:
    first = written(service, instruction="draw a cat", max_tokens=200)
    history = [{"question": "draw a cat", "answer": first["text"]}]
    second = written(service, instruction="draw a dog", history=history)
    # What the model had seen and written comes again, token for token, with the terminator once behind it.
    seen = first["prompt_token_ids"] + first["token_ids"]
    assert second["prompt_token_ids"][: len(seen) - 1] == seen[:-1]
    assert second["dropped_turns"] == 0


def test_a_history_that_is_too_long_loses_its_oldest_turns_and_says_so(service: RunningService) -> None:
    history = [{"question": f"q{number} " + "x1 " * 300, "answer": "yes"} for number in range(6)]
    answer = written(service, instruction="draw a cat", history=history)
    assert 0 < answer["dropped_turns"] < 6
    assert answer["prompt"]["dropped_turns"] == answer["dropped_turns"]


def test_an_answer_in_words_is_streamed_as_it_is_written(service: RunningService) -> None:
    body = {"task": "answer", "instruction": "what is this?", "image": IMAGE, "temperature": 0, "max_tokens": 32}
    response = httpx.post(
        f"{service.url}/v1/generation-prompts", json=body, headers={"Accept": "text/event-stream"}, timeout=120
    )
    *deltas, last = messages(response.text.splitlines())
    assert last.event == "prompt.completed"
    assert "".join(json.loads(delta.data)["text"] for delta in deltas) == json.loads(last.data)["text"]


@pytest.mark.parametrize(
    ("body", "code", "faults"),
    [
        ({"task": "similar"}, "invalid_request", [("", "contradiction")]),
        ({"task": "paint", "instruction": "a"}, "invalid_request", [("task", "not_offered")]),
        ({"instruction": "a", "imagee": "b"}, "invalid_request", [("imagee", "unknown_field")]),
        ({"instruction": "a", "max_tokens": "9"}, "invalid_request", [("max_tokens", "wrong_type")]),
        ({"instruction": "a", "logprobs": 21}, "invalid_request", [("logprobs", "out_of_range")]),
        (
            {"instruction": "a", "history": [{"question": "b", "answer": " "}]},
            "invalid_request",
            [("history.0.answer", "not_text")],
        ),
        ({"task": "inpaint", "image": IMAGE, "mask": MASK[:80]}, "invalid_image", []),
        ({"task": "similar", "image": "https://example.org/a.png"}, "invalid_image", []),
        ({"task": "similar", "image": base64.b64encode(b"GIF89a").decode()}, "invalid_image", []),
    ],
)
def test_what_makes_no_sense_is_refused_in_our_words(
    service: RunningService, body: dict[str, Any], code: str, faults: list[tuple[str, str]]
) -> None:
    response = service.write(**body)
    assert (response.status_code, response.json()["code"]) == (422, code)
    assert [(fault["field"], fault["code"]) for fault in response.json()["errors"]] == faults
    for word in ("pydantic", "PIL", "Input should", "Value error"):
        assert word not in response.text
