"""What the model is asked, in English and in Chinese."""

import pytest

from services.mllm.instructions import is_chinese, question
from shared.contracts import GenerationRequest, Task


def asked(instruction: str, task: Task = Task.TEXT_TO_IMAGE) -> str:
    return question(GenerationRequest(task=task, instruction=instruction))


@pytest.mark.parametrize(
    "instruction",
    [
        "draw a snowman at night",
        "Please paint me a fox.",
        "  Could you design a logo",
        "I want a picture of a cat",
        "show me the sea",
        "画一个雪人",
        "请给我看一只猫",
        "帮我设计一张海报",
    ],
)
def test_a_request_that_asks_goes_through_as_it_is(instruction: str) -> None:
    assert asked(instruction) == instruction.strip()


@pytest.mark.parametrize(
    ("instruction", "expected"),
    [
        ("a snowman at night", "Generate an image of a snowman at night"),
        ("drawing room with a fireplace", "Generate an image of drawing room with a fireplace"),
        ("夜晚的雪人", "请生成一张图片：夜晚的雪人"),
    ],
)
def test_a_bare_description_gets_the_asking_in_its_own_language(instruction: str, expected: str) -> None:
    assert asked(instruction) == expected
    assert asked(instruction, Task.PROMPT) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a cat", False),
        ("一只猫", True),
        ("Café 猫 in the long long evening", False),
        ("一只 cat", True),
        ("123!", False),
    ],
)
def test_the_language_is_told_by_the_script(text: str, expected: bool) -> None:
    assert is_chinese(text) is expected
