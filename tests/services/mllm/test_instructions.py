"""What the model is asked, in English and in Chinese."""

import re

import pytest

from services.mllm.instructions import SOURCE_CAPTION, UNASKED_TOKENS, Writing, is_chinese, question, wants_several


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
@pytest.mark.parametrize("task", [Writing.TEXT_TO_IMAGE, Writing.SIMILAR, Writing.STORY])
def test_a_request_that_asks_goes_through_as_it_is(task: Writing, instruction: str) -> None:
    assert question(task, instruction, has_picture=task is Writing.SIMILAR) == instruction.strip()


@pytest.mark.parametrize(
    ("instruction", "expected"),
    [
        ("a snowman at night", "Generate an image of a snowman at night"),
        ("drawing room with a fireplace", "Generate an image of drawing room with a fireplace"),
        ("夜晚的雪人", "请生成一张图片：夜晚的雪人"),
    ],
)
def test_a_bare_description_gets_the_asking_in_its_own_language(instruction: str, expected: str) -> None:
    assert question(Writing.TEXT_TO_IMAGE, instruction) == expected


@pytest.mark.parametrize(
    ("task", "instruction", "has_picture", "expected"),
    [
        (Writing.SIMILAR, "", True, "Generate another image that looks like this one."),
        (Writing.SIMILAR, "at night", True, "Generate another image that looks like this one: at night"),
        (Writing.SIMILAR, "晚上", True, "请再生成一张与这张图相像的图片：晚上"),
        (Writing.DESCRIBE, "", True, "Describe in rich detail what this picture shows."),
        (Writing.DESCRIBE, "the hat", True, "Describe in rich detail what this picture shows: the hat"),
        (
            Writing.DESCRIBE, "a fox", False,
            "Describe in rich detail, in one paragraph, what a picture of this would show: a fox",
        ),
        (Writing.DESCRIBE, "一只狐狸", False, "请用一段话详细描写这样一幅画面：一只狐狸"),
        (
            Writing.INPAINT, "", True,
            "The black areas of this picture are missing. Generate the complete image, with them filled in.",
        ),
        (Writing.INPAINT, "一只猫", True, "这张图的黑色部分缺失了。请补全缺失的部分，生成完整的图片：一只猫"),
        (
            Writing.OUTPAINT, "a beach", True,
            "This scene goes on where its border is black. Generate the whole wider image: a beach",
        ),
        (Writing.STORY, "a fox who learns to swim", False,
         "Write an illustrated story, and generate an image for each part of it: a fox who learns to swim"),
        (Writing.STORY, "Tell me of a fox", False, "Tell me of a fox"),
        (Writing.STORY, "一只狐狸", False, "请写一个图文故事，并为每一段生成一张图片：一只狐狸"),
        (Writing.EDIT, "a red hat instead", True, "a red hat instead"),
        (Writing.ANSWER, "how many cats are there?", True, "how many cats are there?"),
    ],
)  # fmt: skip
def test_each_task_has_one_wording_per_language(
    task: Writing, instruction: str, has_picture: bool, expected: str
) -> None:
    assert question(task, instruction, has_picture=has_picture) == expected


@pytest.mark.parametrize("task", Writing)
@pytest.mark.parametrize("instruction", ["the sea", "大海"])
def test_every_task_is_put_in_the_language_of_the_person_and_with_their_words(task: Writing, instruction: str) -> None:
    asked = question(task, instruction, has_picture=True)
    assert asked.endswith(instruction)
    assert is_chinese(asked) is is_chinese(instruction)
    assert asked == question(task, instruction, has_picture=True)


def test_an_edit_begins_with_the_text_that_the_models_know() -> None:
    assert SOURCE_CAPTION == "Generate a similar image"


@pytest.mark.parametrize("instruction", ["draw a fox", "a fox", "画一只狐狸"])
@pytest.mark.parametrize("tokens", [16, 75, UNASKED_TOKENS - 1])
def test_brevity_is_asked_for_where_the_renderer_takes_little(instruction: str, tokens: int) -> None:
    plain = question(Writing.TEXT_TO_IMAGE, instruction)
    asked = question(Writing.TEXT_TO_IMAGE, instruction, max_prompt_tokens=tokens)
    assert asked.startswith(plain)
    (words,) = re.findall(r"\d+", asked.removeprefix(plain))
    assert 0.5 * tokens <= int(words) <= 0.75 * tokens
    assert is_chinese(asked) is is_chinese(instruction)


@pytest.mark.parametrize("tokens", [None, UNASKED_TOKENS, 225])
def test_brevity_is_not_asked_for_where_captions_fit_anyway(tokens: int | None) -> None:
    assert question(Writing.TEXT_TO_IMAGE, "draw a fox", max_prompt_tokens=tokens) == "draw a fox"


def test_an_answer_in_words_has_no_such_bound() -> None:
    assert question(Writing.ANSWER, "why?", max_prompt_tokens=20) == "why?"


@pytest.mark.parametrize(
    ("instruction", "expected"),
    [
        ("write a story about a fox", True),
        ("an illustrated fairy tale", True),
        ("a comic with a robot", True),
        ("three posters for a concert", True),
        ("Design several modern logos", True),
        ("a series of small paintings of the sea", True),
        ("讲一个关于狐狸的故事", True),
        ("画三张海报", True),
        ("给我画3幅画", True),
        ("draw a snowman at night", False),
        ("two cats and three dogs", False),
        ("the second story of a house", True),  # a mistake that costs a few tokens
        ("design a logo", False),
        ("画一张海报", False),
        ("一只猫", False),
    ],
)
def test_requests_for_several_pictures_are_told_by_their_words(instruction: str, expected: bool) -> None:
    assert wants_several(instruction) is expected


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
