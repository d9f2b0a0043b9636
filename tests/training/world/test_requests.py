import pytest

from services.mllm.instructions import is_chinese
from training.world import Scene
from training.world.concepts import CONCEPTS
from training.world.objects import Background, Fill, Object, Pattern, Shape, Size, Subject
from training.world.requests import Wanted, request_of, sample_request
from training.world.splits import SPLITS, Split
from training.world.words import LANGUAGES, Language

STAR = Object(Shape.STAR, "yellow", Size.SMALL, Fill.FILLED, "top left")
SCENE = Scene(
    Background("navy", Pattern.STRIPED),
    (STAR, Object(Shape.HEART, "red", Size.LARGE, Fill.OUTLINED, "bottom center")),
)


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("language", LANGUAGES)
def test_scene_fulfills_its_own_request(split: Split, language: Language) -> None:
    for seed in range(500):
        scene, request = sample_request(seed, split, language)
        assert request.wanted
        for wanted in request.wanted:
            assert any(wanted.accepts(item) for item in scene.objects)
        assert request.background in (None, scene.background.color)
        assert request.words in request.text or request.words.capitalize() in request.text.capitalize()
        assert is_chinese(request.text) == (language == "zh")


def test_request_is_a_pure_function_of_its_arguments() -> None:
    assert sample_request(5) == sample_request(5)
    assert len({sample_request(seed)[1].text for seed in range(200)}) > 190


def test_what_is_wanted_is_what_the_words_name() -> None:
    for seed in range(200):
        request = request_of(SCENE, seed)
        for wanted in request.wanted:
            assert wanted.shape in request.words
            assert wanted.colors is None or any(color in request.words for color in wanted.colors)
            if wanted.place is not None:
                assert wanted.place.split()[0] in request.words or wanted.place.split()[1] in request.words
            else:
                assert not any(f"{wanted.shape} {word}" in request.words for word in ("in the", "at the", "on the"))
        assert (request.background is None) == ("background" not in request.words)
        assert not request.is_concept


def test_concept_leaves_colors_free_unless_they_are_named() -> None:
    house = CONCEPTS["house"]
    objects = tuple(Object(part.shape, part.colors[0], part.size, part.fill, part.place) for part in house.parts)
    scene = Scene(Background("navy"), objects, Subject("house", "at night"))
    seen = set()
    for seed in range(50):
        request = request_of(scene, seed)
        assert request.background == "navy"
        assert "at night" in request.words
        roof = request.wanted[0]
        assert roof.place == "middle center"
        if "red roof" in request.words:
            assert roof.colors == frozenset({"red"})
        else:
            assert roof.colors == frozenset({"red", "brown", "purple", "black"})
        seen.add(roof.colors)
    assert len(seen) == 2


def test_requests_are_short() -> None:
    for seed in range(500):
        _, request = sample_request(seed)
        named = {(wanted.shape, wanted.colors, wanted.place) for wanted in request.wanted}
        assert request.is_concept or len({shape for shape, *_ in named}) <= 3
        assert len(request.text.split()) <= 40


def test_most_requests_name_concepts() -> None:
    assert 500 < sum(sample_request(seed)[1].is_concept for seed in range(1_000)) < 800


@pytest.mark.parametrize(
    ("wanted", "accepted"),
    [
        (Wanted(Shape.STAR, None, None), True),
        (Wanted(Shape.STAR, frozenset({"yellow", "white"}), "top left"), True),
        (Wanted(Shape.STAR, frozenset({"white"}), None), False),
        (Wanted(Shape.STAR, None, "top right"), False),
        (Wanted(Shape.HEART, None, None), False),
    ],
)
def test_wanted_object_is_compared_only_in_what_is_named(wanted: Wanted, accepted: bool) -> None:
    assert wanted.accepts(STAR) is accepted


def test_what_services_put_around_bare_descriptions_is_known_from_training() -> None:
    english = {sample_request(seed)[1].text.split(request_words(seed))[0] for seed in range(3_000)}
    assert "Generate an image of " in english
    chinese = {sample_request(seed, language="zh")[1].text.split(request_words(seed, "zh"))[0] for seed in range(2_000)}
    assert "请生成一张图片：" in chinese


def request_words(seed: int, language: Language = "en") -> str:
    return sample_request(seed, language=language)[1].words
