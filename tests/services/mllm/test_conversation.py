"""Rendered prompts against golden texts, written out by hand from LLMGA.md §2."""

import pytest

from services.mllm.conversation import TEMPLATES, Turn, render

TWO_TURNS = [Turn("What is this?", "A cat."), Turn("Draw it at night")]
HUMAN = (
    "A chat between a curious human and an artificial intelligence assistant. The assistant gives helpful, "
    "detailed, and polite answers to the human's questions."
)
LLAMA2_SYSTEM = (
    "You are LLMGA, a useful language and vision generation assistant. You can generate images according to the "
    "user's requirements. If the user wants you to inpaint or outpaint images, please imagine what is in the "
    "black mask parts of the image. If image generation is required, please provide a detailed description of "
    "the generated images in the form of <gen_image> DETAILED DESCRIPTION </gen_image>."
)

# Two turns with a picture; ¶ stands where the picture is.
GOLDEN = {
    "vicuna": (
        "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
        "detailed, and polite answers to the user's questions. USER: ¶\nWhat is this? ASSISTANT: A cat.</s>"
        "USER: Draw it at night ASSISTANT:"
    ),
    "llama3": (
        "<|start_header_id|>system<|end_header_id|>\n\nYou are a helpful language and vision assistant. You are able "
        "to understand the visual content that the user provides, and assist the user with a variety of tasks using "
        "natural language.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n¶\nWhat is this?<|eot_id|>"
        "<|start_header_id|>system<|end_header_id|>\n\nA cat.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n"
        "Draw it at night<|eot_id|><|start_header_id|>system<|end_header_id|>\n\n"
    ),
    "mistral": ("[INST] <<SYS>>\n\n<</SYS>>\n\n¶\nWhat is this? [/INST] A cat. </s><s>[INST] Draw it at night [/INST]"),
    "qwen2": (
        "<|im_start|>system\nA conversation between a user and an LLM-based AI assistant. The assistant gives helpful "
        "and honest answers.<|im_end|><|im_start|>user\n¶\nWhat is this?<|im_end|><|im_start|>assistant\nA cat."
        "<|im_end|><|im_start|>user\nDraw it at night<|im_end|><|im_start|>assistant\n"
    ),
    "phi3": (
        "<|user|>\n¶\nWhat is this?<|end|>\n<|assistant|>\nA cat.<|end|>\n<|user|>\nDraw it at night<|end|>\n"
        "<|assistant|>\n"
    ),
    "gemma": (
        "<start_of_turn>user\n¶\nWhat is this?<end_of_turn>\n<start_of_turn>model\nA cat.<end_of_turn>\n<eos>"
        "<start_of_turn>user\nDraw it at night<end_of_turn>\n<start_of_turn>model\n"
    ),
    "llama2": (
        f"[INST] <<SYS>>\n{LLAMA2_SYSTEM}\n<</SYS>>\n\n¶\nWhat is this? [/INST] A cat. </s><s>[INST] Draw it at "
        "night [/INST]"
    ),
}


@pytest.mark.parametrize("family", sorted(GOLDEN))
def test_two_turns_with_a_picture_give_the_golden_text(family: str) -> None:
    assert "¶".join(render(TEMPLATES[family], TWO_TURNS, has_image=True)) == GOLDEN[family]


@pytest.mark.parametrize("family", sorted(GOLDEN))
def test_without_a_picture_only_the_picture_and_its_newline_are_missing(family: str) -> None:
    assert render(TEMPLATES[family], TWO_TURNS) == [GOLDEN[family].replace("¶\n", "")]


def test_every_family_has_a_golden_text() -> None:
    assert sorted(TEMPLATES) == sorted(GOLDEN)


@pytest.mark.parametrize("family", sorted(GOLDEN))
def test_a_finished_conversation_ends_with_one_terminator(family: str) -> None:
    template = TEMPLATES[family]
    (text,) = render(template, TWO_TURNS[:1])
    assert text.endswith("A cat." + template.terminator)
    assert not text.endswith(template.terminator * 2)


def test_the_command_line_s_system_prompt_differs_for_vicuna_alone() -> None:
    (text,) = render(TEMPLATES["vicuna"], [Turn("Hi")], system_prompt="cli")
    assert text == f"{HUMAN} USER: Hi ASSISTANT:"
    for family in set(TEMPLATES) - {"vicuna"}:
        template = TEMPLATES[family]
        assert render(template, [Turn("Hi")], system_prompt="cli") == render(template, [Turn("Hi")])


def test_a_typed_image_marker_is_text_and_no_picture() -> None:
    texts = render(TEMPLATES["qwen2"], [Turn("what does <image> mean?")], has_image=True)
    assert len(texts) == 2
    assert "what does <image> mean?" in texts[1]


@pytest.mark.parametrize("turns", [[], [Turn("a"), Turn("b")]])
def test_conversations_without_sense_are_refused(turns: list[Turn]) -> None:
    with pytest.raises(ValueError, match="at least one turn"):
        render(TEMPLATES["qwen2"], turns)
