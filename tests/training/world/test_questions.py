import pytest

from services.mllm.instructions import is_chinese
from training.world import Scene, sample_scene
from training.world.objects import Background, Fill, Object, Pattern, Shape, Size, Subject
from training.world.questions import Question, questions_of, sample_talk
from training.world.splits import SPLITS, Split

SCENE = Scene(
    Background("navy", Pattern.PLAIN),
    (
        Object(Shape.STAR, "yellow", Size.SMALL, Fill.FILLED, "top left"),
        Object(Shape.CROSS, "red", Size.LARGE, Fill.OUTLINED, "bottom center"),
        Object(Shape.CROSS, "white", Size.LARGE, Fill.FILLED, "bottom right"),
    ),
    Subject("windmill", "at night"),
)


def asked(kind: str, language: str = "en") -> set[tuple[str, str]]:
    return {
        (question.text.lower(), question.answer)
        for seed in range(60)
        for question in questions_of(SCENE, seed, language="zh" if language == "zh" else "en")
        if question.kind == kind
    }


@pytest.mark.parametrize(
    ("kind", "language", "text", "answer"),
    [
        ("count", "en", "how many objects are there?", "There are three objects."),
        ("count_shape", "en", "how many crosses are there?", "There are two crosses."),
        ("count_shape", "en", "how many stars do you see?", "There is one star."),
        ("color", "en", "what color is the star?", "The star is yellow."),
        ("place", "en", "where is the star?", "The star is in the top left."),
        ("what", "en", "what is at the bottom?", "There is a large outlined red cross."),
        ("background", "en", "what color is the background?", "The background is a plain navy."),
        ("size", "en", "how large is the star?", "The star is small."),
        ("subject", "en", "what does this picture show?", "It is a windmill at night."),
        ("count", "zh", "有几个物体？", "有三个物体。"),
        ("color", "zh", "星星是什么颜色？", "星星是黄色的。"),
        ("what", "zh", "下方有什么？", "有一个大的空心红色十字。"),
        ("subject", "zh", "这是什么？", "这是夜晚的风车。"),
    ],
)
def test_answers_are_right(kind: str, language: str, text: str, answer: str) -> None:
    assert (text, answer) in asked(kind, language)


def test_answers_about_presence_are_right_both_ways() -> None:
    pairs = asked("is_there")
    yes = [text for text, answer in pairs if answer.startswith("Yes")]
    assert yes
    assert len(yes) < len(pairs)
    there = ("yellow star", "red cross", "white cross")
    assert all(any(thing in text for thing in there) == (text in yes) for text, _ in pairs)


def test_what_is_ambiguous_is_not_asked() -> None:
    assert not any("cross" in text for text, _ in asked("color") | asked("place") | asked("size"))


@pytest.mark.parametrize("split", SPLITS)
def test_every_scene_has_questions_in_both_languages(split: Split) -> None:
    for seed in range(100):
        scene = sample_scene(seed, split)
        for question in questions_of(scene, seed, split, "zh"):
            assert is_chinese(question.text)
            assert is_chinese(question.answer) or question.kind == "describe"
        assert len(questions_of(scene, seed, split)) >= 6


def test_talk_is_in_the_language_asked_for() -> None:
    talks: list[Question] = [sample_talk(seed, language="zh") for seed in range(100)]
    assert all(is_chinese(talk.text) and is_chinese(talk.answer) for talk in talks)
    assert {talk.kind for talk in talks} == {"looks", "setting", "greeting", "ability"}
    looks = {sample_talk(seed).answer for seed in range(300)}
    assert "It has a green star in the top center and a red heart in the middle center." in looks
