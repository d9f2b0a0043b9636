import re
from collections.abc import Iterable, Mapping
from itertools import chain

import pytest

from training.world import Scene, sample_scene
from training.world.concepts import CONCEPTS, SETTINGS
from training.world.edits import INSTRUCTIONS_EN, INSTRUCTIONS_ZH, KINDS, sample_edit
from training.world.objects import BACKGROUNDS, COLORS, PLACES, Fill, Pattern, Shape, Size
from training.world.questions import questions_of, sample_talk
from training.world.requests import phrasings, sample_request
from training.world.scenes import subject_is_held_out
from training.world.splits import Split, composition_is_held_out, is_held_out, object_is_held_out
from training.world.words import LANGUAGES, Language

COUNT = 3_000


@pytest.fixture(scope="module")
def train() -> list[Scene]:
    return [sample_scene(seed) for seed in range(COUNT)]


def is_new(scene: Scene) -> bool:
    subject = scene.subject
    return any(map(object_is_held_out, scene.objects)) or (
        subject is not None and subject_is_held_out(subject, scene.background)
    )


def test_train_never_has_a_held_out_composition(train: list[Scene]) -> None:
    assert not any(map(is_new, train))


def test_requests_and_edits_of_train_have_none_either() -> None:
    for seed in range(500):
        for language in LANGUAGES:
            edit = sample_edit(seed, "train", language)
            assert not any(map(object_is_held_out, (*edit.before.objects, *edit.after.objects)))
            assert not is_new(sample_request(seed, "train", language)[0])


def test_every_held_out_scene_has_something_that_train_never_has() -> None:
    assert all(is_new(sample_scene(seed, "held_out")) for seed in range(COUNT))


def test_train_covers_every_single_attribute(train: list[Scene]) -> None:
    objects = list(chain.from_iterable(scene.objects for scene in train))
    assert {item.color for item in objects} == set(COLORS)
    assert {item.shape for item in objects} == set(Shape)
    assert {item.size for item in objects} == set(Size)
    assert {item.fill for item in objects} == set(Fill)
    assert {item.place for item in objects} == set(PLACES)
    assert {(item.color, item.place) for item in objects} == {(color, place) for color in COLORS for place in PLACES}
    assert {(item.shape, item.place) for item in objects} == {(shape, place) for shape in Shape for place in PLACES}
    backgrounds = {(scene.background.color, scene.background.pattern) for scene in train}
    assert backgrounds == {(color, pattern) for color in BACKGROUNDS for pattern in Pattern}
    subjects = [scene.subject for scene in train if scene.subject]
    assert {subject.concept for subject in subjects} == set(CONCEPTS)
    assert {subject.setting for subject in subjects} == {"", *SETTINGS}


def test_held_out_compositions_are_many_and_spread() -> None:
    held_out = [
        (color, shape, place)
        for color in COLORS
        for shape in Shape
        for place in PLACES
        if composition_is_held_out(color, shape, place)
    ]
    assert 80 <= len(held_out) <= 130
    assert {color for color, _, _ in held_out} == set(COLORS)
    assert {shape for _, shape, _ in held_out} == set(Shape)
    assert {place for _, _, place in held_out} == set(PLACES)


def test_the_hash_is_the_same_on_every_machine() -> None:
    assert [number for number in range(40) if is_held_out("red", str(number))] == [6, 10, 20]


@pytest.mark.parametrize("language", LANGUAGES)
def test_held_out_ways_to_ask_never_occur_in_train_and_often_in_the_other(language: Language) -> None:
    new = {frame.format(v=verb, x="...") for frame, verb in phrasings(language, held_out=True)}
    assert len(new) >= 3

    def ways(split: Split) -> list[str]:
        requests = (sample_request(seed, split, language)[1] for seed in range(1_000))
        texts = (request.text[0].lower() + request.text[1:].rstrip(".。") for request in requests)
        return [text.replace(sample_request(seed, split, language)[1].words, "...") for seed, text in enumerate(texts)]

    assert not new & set(ways("train"))
    assert sum(way in new for way in ways("held_out")) > 400


def words(texts: Iterable[str], language: Language) -> set[str]:
    found: set[str] = set()
    for text in texts:
        found.update(re.findall(r"[a-z]+" if language == "en" else r"[\u4e00-\u9fff]", text.lower()))
    return found


@pytest.mark.parametrize("language", LANGUAGES)
def test_train_knows_every_word_of_the_held_out_split(language: Language) -> None:
    def texts(split: Split) -> Iterable[str]:
        for seed in range(1_500 if split == "train" else 500):
            yield sample_request(seed, split, language)[1].text
            yield sample_edit(seed, split, language).instruction
            yield sample_talk(seed, split, language).text
            for question in questions_of(sample_scene(seed, split), seed, split, language):
                yield question.text

    # Each concept is in the train split, but a few hundred requests need not name each of its parts.
    parts = [part.names for concept in CONCEPTS.values() for part in concept.parts if part.names]
    names = [english if language == "en" else chinese for english, chinese in parts]
    assert words(texts("held_out"), language) <= words([*texts("train"), *names], language)


@pytest.mark.parametrize("kind", KINDS)
def test_last_instruction_of_a_kind_is_held_out_and_made_of_known_words(kind: str) -> None:
    every: Mapping[Language, Mapping[str, tuple[str, ...]]] = {"en": INSTRUCTIONS_EN, "zh": INSTRUCTIONS_ZH}
    for language, ways in every.items():
        known_words = words(chain.from_iterable(others[:-1] for others in ways.values()), language)
        assert ways[kind][-1] not in ways[kind][:-1]
        assert words(ways[kind][-1:], language) <= known_words
