"""`/v1/chat/completions` of the real server: OpenAI's shapes, the family's template, one picture."""

import base64
import io
import json
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image
from tokenizers import Tokenizer

from tests.processes import until
from tests.services.mllm.running import RunningService

pytestmark = pytest.mark.slow

PATH = "/v1/chat/completions"


def post(service: RunningService, **body: Any) -> httpx.Response:
    return httpx.post(service.url + PATH, json={"model": "mini", **body}, timeout=120)


def said(content: Any, role: str = "user") -> dict[str, Any]:
    return {"role": role, "content": content}


def chunks(response: httpx.Response) -> list[dict[str, Any]]:
    """Return the chunks of a stream, which has ended as it should."""
    assert response.headers["content-type"].startswith("text/event-stream")
    *blocks, last = response.text.strip().split("\n\n")
    assert last == "data: [DONE]"
    return [json.loads(block.removeprefix("data: ")) for block in blocks]


def data_uri(color: str, size: tuple[int, int] = (40, 30)) -> str:
    file = io.BytesIO()
    Image.new("RGB", size, color).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def test_an_answer_has_openai_s_shape(service: RunningService) -> None:
    before = int(time.time())
    answer = post(service, messages=[said("draw a snowman at night")], temperature=0).json()
    assert answer["object"] == "chat.completion"
    assert answer["id"].startswith("chatcmpl-")
    assert answer["model"] == "mini"
    assert before <= answer["created"] <= time.time()
    (choice,) = answer["choices"]
    assert choice["index"] == 0
    assert choice["finish_reason"] == "stop"
    assert choice["logprobs"] is None
    assert choice["message"]["role"] == "assistant"
    assert choice["message"]["content"].startswith("<gen_image>")
    assert "<|im_end|>" not in choice["message"]["content"]
    usage = answer["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert usage["completion_tokens"] > 10


def test_the_conversation_is_the_family_s_template(service: RunningService, mini: Path) -> None:
    asked = post(service, messages=[said("a"), said("b", "assistant"), said("draw a cat")], max_tokens=1).json()
    text = (
        "<|im_start|>system\nA conversation between a user and an LLM-based AI assistant. The assistant gives helpful "
        "and honest answers.<|im_end|><|im_start|>user\na<|im_end|><|im_start|>assistant\nb<|im_end|>"
        "<|im_start|>user\ndraw a cat<|im_end|><|im_start|>assistant\n"
    )
    tokenizer = Tokenizer.from_file(str(mini / "tokenizer.json"))
    assert asked["usage"]["prompt_tokens"] == len(tokenizer.encode(text).ids)


def test_a_system_message_takes_the_place_of_the_family_s_own(service: RunningService) -> None:
    own = post(service, messages=[said("Be kind.", "system"), said("hi")], max_tokens=1).json()
    usual = post(service, messages=[said("hi")], max_tokens=1).json()
    assert own["usage"]["prompt_tokens"] < usual["usage"]["prompt_tokens"]


def test_chunks_of_a_stream_make_up_the_answer(service: RunningService) -> None:
    asked: dict[str, Any] = {"messages": [said("paint a house in winter")], "temperature": 0}
    whole = post(service, **asked).json()
    first, *middle, last, usage = chunks(post(service, **asked, stream=True, stream_options={"include_usage": True}))
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert len(middle) > 3
    text = "".join(chunk["choices"][0]["delta"]["content"] for chunk in middle)
    assert text == whole["choices"][0]["message"]["content"]
    assert last["choices"][0] == {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"}
    assert (usage["choices"], usage["usage"]) == ([], whole["usage"])
    assert {chunk["object"] for chunk in (first, *middle, last, usage)} == {"chat.completion.chunk"}
    assert len({chunk["id"] for chunk in (first, *middle, last, usage)}) == 1
    assert "usage" not in chunks(post(service, **asked, stream=True))[-1]


def test_generation_prompts_of_an_answer_are_told_beside_it(service: RunningService) -> None:
    asked: dict[str, Any] = {"messages": [said("paint a house in winter")], "temperature": 0}
    whole = post(service, **asked).json()
    (prompt,) = whole["generation_prompts"]
    assert prompt
    assert "<" not in prompt
    last = chunks(post(service, **asked, stream=True))[-1]
    assert last["generation_prompts"] == [prompt]
    assert last["choices"][0]["finish_reason"] == "stop"
    cut = post(service, **asked, max_tokens=5).json()
    assert "generation_prompts" not in cut  # it was never closed


def test_log_probabilities_are_of_the_tokens_that_make_up_the_text(service: RunningService) -> None:
    asked: dict[str, Any] = {"messages": [said("draw a cat")], "temperature": 0, "logprobs": True}
    choice = post(service, **asked, top_logprobs=3).json()["choices"][0]
    entries = choice["logprobs"]["content"]
    assert "".join(entry["token"] for entry in entries).strip() == choice["message"]["content"]
    for entry in entries:
        assert entry["logprob"] <= 0
        assert bytes(entry["bytes"]).decode() == entry["token"]
        best = entry["top_logprobs"]
        assert len(best) == 3
        assert (best[0]["token"], best[0]["logprob"]) == (entry["token"], entry["logprob"])
    assert {
        len(entry["top_logprobs"]) for entry in post(service, **asked).json()["choices"][0]["logprobs"]["content"]
    } == {0}
    streamed = chunks(post(service, **asked, top_logprobs=3, stream=True))
    told = [entry for chunk in streamed for entry in (chunk["choices"][0]["logprobs"] or {"content": []})["content"]]
    assert [entry["token"] for entry in told] == [entry["token"] for entry in entries]


def test_a_stop_text_ends_the_answer_and_is_not_in_it(service: RunningService) -> None:
    asked: dict[str, Any] = {"messages": [said("draw a cat")], "temperature": 0}
    whole = post(service, **asked).json()["choices"][0]["message"]["content"]
    stop = whole[len(whole) // 2 :][:6]
    choice = post(service, **asked, stop=[stop]).json()["choices"][0]
    assert choice["message"]["content"] == whole[: whole.index(stop)].rstrip()
    assert choice["finish_reason"] == "stop"


def test_an_answer_cut_by_its_length_says_so(service: RunningService) -> None:
    for name in ("max_tokens", "max_completion_tokens"):
        answer = post(service, messages=[said("draw a cat")], **{name: 5}).json()
        assert answer["choices"][0]["finish_reason"] == "length"
        assert answer["usage"]["completion_tokens"] == 5


def test_the_same_seed_gives_the_same_answer(service: RunningService) -> None:
    def answers(seed: int) -> list[str]:
        return [
            post(service, messages=[said(f"draw {what}")], temperature=2, seed=seed, max_tokens=40).json()["choices"][
                0
            ]["message"]["content"]
            for what in ("a cat", "a red star")
        ]

    assert answers(1) == answers(1) != answers(2)


def test_a_picture_is_seen_and_one_is_told_from_another(service: RunningService) -> None:
    def asked(color: str | None) -> dict[str, Any]:
        content: Any = "draw this again"
        if color:
            content = [{"type": "text", "text": content}, {"type": "image_url", "image_url": {"url": data_uri(color)}}]
        answer = post(
            service, messages=[said(content)], temperature=0, max_tokens=1, logprobs=True, top_logprobs=5
        ).json()
        return {
            "tokens": answer["usage"]["prompt_tokens"],
            "logprobs": [entry["logprob"] for entry in answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]],
        }

    red, white, none = asked("red"), asked("white"), asked(None)
    assert asked("red") == red
    assert red["tokens"] == white["tokens"] == none["tokens"] + 17  # the mini tower's 16 positions and a newline
    assert red["logprobs"] != pytest.approx(white["logprobs"], abs=1e-4)


@pytest.mark.parametrize(
    ("body", "status", "code", "param"),
    [
        ({"messages": []}, 400, "invalid_request", "messages"),
        ({"messages": [said("hi")], "n": 2}, 400, "invalid_request", "n"),
        ({"messages": [said("hi")], "tools": []}, 400, "invalid_request", "tools"),
        ({"messages": [said("hi")], "model": "gpt-5"}, 404, "model_not_found", None),
        ({"messages": [said("hi", "assistant")]}, 400, "invalid_request", None),
        ({"messages": [said("x1 " * 2_600)]}, 400, "prompt_too_long", None),
        (
            {"messages": [said([{"type": "image_url", "image_url": {"url": "http://127.0.0.1:9/x.png"}}])]},
            400,
            "invalid_image",
            None,
        ),
        (
            {"messages": [said([{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}])]},
            400,
            "invalid_image",
            None,
        ),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_refusals_come_in_openai_s_envelope(
    service: RunningService, body: dict[str, Any], status: int, code: str, param: str | None, stream: bool
) -> None:
    response = post(service, **{**body, "stream": stream})
    assert response.status_code == status
    assert response.json().keys() == {"error"}
    error = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert (error["type"], error["code"], error["param"]) == ("invalid_request_error", code, param)
    assert error["message"]
    assert "pydantic" not in response.text.lower()


@pytest.mark.parametrize(
    ("body", "status"), [(b"{", 400), (b"[]", 400), (b"[" * 50_000, 400), (b'"' + b"a" * 26_300_000, 413)]
)
def test_bad_bodies_are_refused(service: RunningService, body: bytes, status: int) -> None:
    response = httpx.post(service.url + PATH, content=body, headers={"Content-Type": "application/json"}, timeout=60)
    assert response.status_code == status
    assert response.json()["error"]["type"] == "invalid_request_error"


def test_a_client_that_leaves_frees_its_place(service: RunningService) -> None:
    body = {"model": "mini", "messages": [said("draw " + "a cat and " * 200)], "temperature": 2, "stream": True}
    before = service.gauge("request_success_total", finished_reason="abort")
    for seed in range(5):
        with httpx.stream("POST", service.url + PATH, json={**body, "seed": seed}, timeout=60) as response:
            next(response.iter_bytes())
    until(lambda: service.gauge("num_requests_running") == 0, what="an idle engine")
    assert service.gauge("num_requests_waiting") == 0
    assert service.gauge("request_success_total", finished_reason="abort") >= before
