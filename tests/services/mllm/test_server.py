"""The real server with a mini checkpoint: its answers are the unconverted weights' own."""

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import Qwen2Config, Qwen2ForCausalLM

from tests.services.mllm.running import RunningService
from tests.services.mllm.test_conversation import GOLDEN

pytestmark = pytest.mark.slow

PATH = "/v1/generation-prompts"


@pytest.fixture(scope="module")
def reference(mini: Path) -> Qwen2ForCausalLM:
    """Return the language model of the *unconverted* checkpoint, in transformers."""
    config = json.loads((mini / "config.json").read_text())
    wanted = (
        "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads "
        "rms_norm_eps tie_word_embeddings max_position_embeddings hidden_act"
    ).split()
    model = Qwen2ForCausalLM(
        Qwen2Config(
            **{name: config[name] for name in wanted},
            rope_parameters={"rope_type": "default", "rope_theta": config["rope_theta"]},
        )
    )
    weights = {
        name: tensor
        for name, tensor in load_file(mini / "model.safetensors").items()
        if not name.startswith(("model.mm_projector.", "model.vision_tower."))
    }
    model.load_state_dict({**weights, "lm_head.weight": weights["model.embed_tokens.weight"]})
    return model.eval().float()


def events_of(response: httpx.Response) -> list[tuple[str, dict[str, Any]]]:
    """Return (name, data) of each event of a stream."""
    events = []
    for block in response.text.strip().split("\n\n"):
        name, data = block.split("\n")
        events.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return events


@pytest.mark.parametrize("instruction", ["draw a snowman at night", "画一个红色圆形", "show me a cat in the rain!"])
def test_log_probabilities_equal_those_of_the_unconverted_weights(
    service: RunningService, reference: Qwen2ForCausalLM, instruction: str
) -> None:
    answer = service.write(
        instruction=instruction, temperature=0, max_tokens=64, logprobs=5, return_token_ids=True
    ).json()
    prompt, written = answer["prompt_token_ids"], answer["token_ids"]
    with torch.no_grad():
        logits = reference(input_ids=torch.tensor([prompt + written])).logits[0]
    expected = torch.log_softmax(logits[len(prompt) - 1 : -1], dim=-1)
    assert len(written) == len(answer["logprobs"]) > 10
    worst = max(
        abs(value - expected[position, int(token)].item())
        for position, given in enumerate(answer["logprobs"])
        for token, value in given.items()
    )
    assert worst <= 1e-3
    assert written == expected.argmax(-1).tolist()


def test_the_ids_sent_are_those_of_the_golden_text(service: RunningService, mini: Path) -> None:
    text = GOLDEN["qwen2"].split("¶")[0] + "draw a cat<|im_end|><|im_start|>assistant\n"
    tokenizer = Tokenizer.from_file(str(mini / "tokenizer.json"))
    for more, begun in (({"logprobs": 0}, ""), ({}, "<gen_image>")):
        answer = service.write(instruction="draw a cat", max_tokens=16, return_token_ids=True, **more).json()
        assert answer["prompt_token_ids"] == tokenizer.encode(text + begun).ids


def test_json_answer_names_the_model_and_how_it_came_about(service: RunningService) -> None:
    response = service.write(instruction="draw a snowman at night", temperature=0)
    assert response.status_code == 200
    prompt = response.json()["prompt"]
    assert prompt["source"] == "mllm"
    assert prompt["model"] == "mini"
    assert prompt["finish_reason"] == "stop"
    assert prompt["completion_tokens"] > 10
    assert "fallback" not in prompt
    assert "picture" in prompt["text"]
    assert not set(prompt["text"]) & set("<>")
    assert "token_ids" not in response.json()
    assert response.json()["prompts"] == [prompt]


def test_the_same_seed_gives_the_same_prompt_and_another_seed_another(service: RunningService) -> None:
    def prompts(seed: int) -> list[str]:
        return [
            service.write(instruction=f"draw {what}", temperature=2, seed=seed).json()["prompt"]["text"]
            for what in ("a cat", "a red star")
        ]

    first = prompts(1)
    assert prompts(1) == first
    assert any(prompts(seed) != first for seed in (2, 3, 4))


def test_deltas_of_the_stream_concatenate_to_the_prompt(service: RunningService) -> None:
    response = httpx.post(
        service.url + PATH,
        json={"instruction": "paint a house in winter", "temperature": 0},
        headers={"Accept": "text/event-stream"},
        timeout=120,
    )
    assert response.headers["content-type"].startswith("text/event-stream")
    *deltas, (last, answer) = events_of(response)
    assert {name for name, _ in deltas} == {"prompt.delta"}
    assert last == "prompt.completed"
    assert len(deltas) > 1
    assert "".join(data["text"] for _, data in deltas) == answer["prompt"]["text"]


def test_an_answer_cut_by_its_length_says_so(service: RunningService) -> None:
    prompt = service.write(instruction="draw a cat", temperature=0, max_tokens=9).json()["prompt"]
    assert prompt["finish_reason"] == "length"
    assert prompt["completion_tokens"] == 9


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b'{"instruction": "draw"', 400, "malformed_json"),
        (b"\xff\xfe", 400, "malformed_json"),
        (b"[" * 50_000, 400, "malformed_json"),
        (b"[]", 422, "invalid_request"),
        (b"{}", 422, "invalid_request"),
        (b'{"instruction": "  "}', 422, "invalid_request"),
        (b'{"instruction": "' + b"a" * 8_001 + b'"}', 422, "invalid_request"),
        (b'{"instruction": "draw", "surprise": 1}', 422, "invalid_request"),
        (b'{"instruction": "draw", "max_tokens": 0}', 422, "invalid_request"),
        (b'{"instruction": "draw", "max_tokens": 99999999}', 422, "invalid_request"),
        (b'{"instruction": "draw", "temperature": NaN}', 422, "invalid_request"),
        (b'{"instruction": "draw", "top_p": 0}', 422, "invalid_request"),
        (b'{"instruction": "draw", "logprobs": 1000}', 422, "invalid_request"),
        (b'{"instruction": "draw", "seed": -1}', 422, "invalid_request"),
        (b'{"instruction": "' + b"a" * 200_000 + b'"}', 422, "invalid_request"),
        (b'{"instruction": "a", "image": "' + b"A" * 34_000_000 + b'"}', 413, "body_too_large"),
    ],
)
def test_bad_bodies_are_problems_and_never_a_library_s_text(
    service: RunningService, body: bytes, status: int, code: str
) -> None:
    response = httpx.post(service.url + PATH, content=body, headers={"Content-Type": "application/json"}, timeout=60)
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert problem["code"] == code
    assert problem["status"] == status
    assert problem["next_step"]
    assert "pydantic" not in response.text.lower()


def test_an_instruction_beyond_the_context_is_refused_before_the_engine(service: RunningService) -> None:
    response = service.write(instruction="x1 " * 2_600)
    assert (response.status_code, response.json()["code"]) == (422, "prompt_too_long")


def test_a_body_of_another_type_is_refused(service: RunningService) -> None:
    response = httpx.post(service.url + PATH, data={"instruction": "draw"}, timeout=60)
    assert (response.status_code, response.json()["code"]) == (415, "unsupported_media_type")


@pytest.mark.parametrize(
    "path", ["/v1/completions", "/v1/responses", "/tokenize", "/openapi.json", "/docs", "/invocations"]
)
def test_other_ways_into_the_engine_are_closed(service: RunningService, path: str) -> None:
    assert httpx.post(service.url + path, json={}, timeout=60).status_code == 404


def test_health_metrics_and_models_stay(service: RunningService) -> None:
    assert httpx.get(f"{service.url}/health", timeout=60).status_code == 200
    assert "vllm:num_requests_running" in httpx.get(f"{service.url}/metrics", timeout=60).text
    (model,) = httpx.get(f"{service.url}/v1/models", timeout=60).json()["data"]
    assert model["id"] == "mini"


def test_the_status_port_says_what_is_served(service: RunningService) -> None:
    details = httpx.get(f"{service.status_url}/readyz?verbose", timeout=60).json()
    assert details["status"] == "ready"
    assert (details["phase"], details["model"], details["family"]) == ("ready", "mini", "qwen2")
    assert httpx.get(f"{service.status_url}/livez", timeout=60).status_code == 200
    assert "llmga_prompt_tokens_total" in httpx.get(f"{service.status_url}/metrics", timeout=60).text
