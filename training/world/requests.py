"""Short requests for a scene, and what they pin.

A request is what a person writes: a concept ("a snowman at night") or a few terse words ("two red stars and a heart
on the left"). It names some of the scene and leaves the rest free, so `wanted` says what a picture must have to
fulfill it. `words` is the bare description, as in the `ori_caption` of the published data; `text` asks for it.
Half of the requests of the held-out split use ways to ask that training never has.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count

from training.world.concepts import CONCEPTS, SETTINGS, Concept
from training.world.objects import Background, Object, Scene, Shape
from training.world.scenes import sample_scene
from training.world.splits import Split, is_held_out
from training.world.words import (
    COLORS_ZH,
    NUMBERS_EN,
    NUMBERS_ZH,
    PLACES_EN,
    PLACES_ZH,
    Language,
    article,
    background_en,
    background_zh,
    phrase_en,
    phrase_zh,
    plural,
)


@dataclass(frozen=True, slots=True)
class Wanted:
    """One object that a picture must have; `None` is free."""

    shape: Shape
    colors: frozenset[str] | None
    place: str | None

    def accepts(self, item: Object, *, any_shape: bool = False) -> bool:
        """Return whether an object is what is wanted."""
        return (
            (any_shape or item.shape is self.shape)
            and (self.colors is None or item.color in self.colors)
            and (self.place is None or item.place == self.place)
        )


@dataclass(frozen=True, slots=True)
class Request:
    """A request with what it pins.

    background: the color that the background must have, where the request speaks of it.
    is_concept: whether it names a concept; a terse request names objects.
    """

    text: str
    words: str
    language: Language
    wanted: tuple[Wanted, ...]
    background: str | None
    is_concept: bool


@dataclass(frozen=True, slots=True)
class _Described:
    words: str
    wanted: tuple[Wanted, ...]
    background: str | None


_VERBS_EN = ("draw", "paint", "generate", "create", "make", "sketch", "design", "render")
_FRAMES_EN = (
    "{v} {x}",
    "please {v} {x}",
    "can you {v} {x}?",
    "could you {v} {x}, please?",
    "{v} me {x}",
    "{v} {x} for me",
    "{v} a picture of {x}",
    "{v} an image of {x}",
    "please {v} a picture of {x}",
    "i would like you to {v} {x}",
    "now {v} {x}",
)
_PLAIN_EN = ("{x}", "a picture of {x}", "an image of {x}", "show me {x}", "i want {x}", "i need {x}", "{x}, please")
_VERBS_ZH = ("画", "绘制", "生成", "创作", "设计", "制作")
_FRAMES_ZH = (
    "{v}{x}",
    "请{v}{x}",
    "请帮我{v}{x}",
    "给我{v}{x}",
    "帮我{v}{x}",
    "你能{v}{x}吗？",
    "{v}一张图片：{x}",
    "请{v}一张图片：{x}",
    "我想让你{v}{x}",
)
_PLAIN_ZH = ("{x}", "给我看{x}", "我想要{x}", "一张图片：{x}", "一幅画：{x}")
# What services put around a bare description: training must know it.
_SERVING = frozenset({("{v} an image of {x}", "generate"), ("请{v}一张图片：{x}", "生成")})

_CONCEPTS = 0.6  # share of requests that name a concept
_MAX_KINDS = 3
_FAR = 1_000_003  # between the seeds of scenes that are tried one after another
_BARE = 0.35  # requests without a verb
_SUBSET = 0.1  # terse requests that name some of the objects, and leave the others to be invented
_NEW_PHRASING = 0.5  # of the held-out split


def request_of(scene: Scene, seed: int, split: Split = "train", language: Language = "en") -> Request:
    """Return a request that the scene fulfills; a pure function of its arguments."""
    rng = random.Random(f"request {split} {seed} {language}")
    if scene.subject is not None:
        described = _concept(scene, rng, language)
    else:
        described = _terse(scene, rng, language)
    text = ask(described.words, rng, split, language)
    return Request(
        text, described.words, language, described.wanted, described.background, is_concept=scene.subject is not None
    )


def sample_request(seed: int, split: Split = "train", language: Language = "en") -> tuple[Scene, Request]:
    """Return a short request of this seed and a scene that fulfills it: a concept, or at most three kinds of object."""
    for again in count():
        scene = sample_scene(seed + again * _FAR, split, concepts=_CONCEPTS)
        kinds = {(item.color, item.shape) for item in scene.objects}
        if scene.subject is not None or len(kinds) <= _MAX_KINDS:
            return scene, request_of(scene, seed, split, language)
    raise AssertionError("unreachable")


def list_of(scene: Scene, seed: int, split: Split = "train", language: Language = "en") -> str:
    """Return a request that leaves nothing of the scene free: every object with all that it has, in any order."""
    rng = random.Random(f"list {split} {seed} {language}")
    items = rng.sample(scene.objects, len(scene.objects))
    if language == "en":
        described = [
            f"{article(phrase_en(item, size=True, fill=True))} {rng.choice(PLACES_EN[item.place])}" for item in items
        ]
    else:
        described = [f"{PLACES_ZH[item.place]}的一个{phrase_zh(item, size=True, fill=True)}" for item in items]
    return ask(_on(scene.background, _join(described, rng, language), language, pattern=True), rng, split, language)


def ask(words: str, rng: random.Random, split: Split, language: Language) -> str:
    """Return words that ask for what is described."""
    is_new = split == "held_out" and rng.random() < _NEW_PHRASING
    plain = _PLAIN_EN if language == "en" else _PLAIN_ZH
    if not is_new and rng.random() < _BARE:
        text = rng.choice(plain).format(x=words)
    else:
        frame, verb = rng.choice(phrasings(language, held_out=is_new))
        text = frame.format(v=verb, x=words)
    if language == "zh":
        return text + ("" if text[-1] in "？" or rng.random() < 0.7 else "。")
    if rng.random() < 0.5:
        text = text[0].upper() + text[1:]
    return text + ("" if text[-1] == "?" or rng.random() < 0.7 else ".")


def phrasings(language: Language, *, held_out: bool) -> list[tuple[str, str]]:
    """Return the pairs of frame and verb of one split."""
    frames, verbs = (_FRAMES_EN, _VERBS_EN) if language == "en" else (_FRAMES_ZH, _VERBS_ZH)
    pairs = [(frame, verb) for frame in frames for verb in verbs]
    return [pair for pair in pairs if (pair not in _SERVING and is_held_out(*pair)) == held_out]


# Concepts


def _concept(scene: Scene, rng: random.Random, language: Language) -> _Described:
    assert scene.subject is not None
    concept = CONCEPTS[scene.subject.concept]
    parts = [next(item for item in scene.objects if item.place == part.place) for part in concept.parts]
    pinned = _pinned_part(concept, rng)
    wanted = tuple(
        Wanted(part.shape, frozenset([item.color]) if index == pinned else frozenset(part.colors), part.place)
        for index, (part, item) in enumerate(zip(concept.parts, parts, strict=True))
    )
    background = None
    if scene.subject.setting or concept.background or rng.random() < 0.4:
        background = scene.background
    says_pattern = rng.random() < 0.5
    where = "" if concept.background else _where(scene.subject.setting, background, language, says_pattern)
    if language == "en":
        name = concept.with_article if rng.random() < 0.7 else concept.name
        if pinned is not None:
            name += f" with a {parts[pinned].color} {_name(concept, pinned)[0]}"
        words = f"{name} {where}".strip()
    else:
        name = f"一个{concept.chinese}" if concept.is_countable and rng.random() < 0.5 else concept.chinese
        if pinned is not None:
            name = f"{COLORS_ZH[parts[pinned].color]}{_name(concept, pinned)[1]}的{concept.chinese}"
        words = where + name
    return _Described(words, wanted, background.color if background else None)


def _where(setting: str, background: Background | None, language: Language, says_pattern: bool) -> str:
    if setting:
        return setting if language == "en" else SETTINGS[setting].chinese
    if background is None:
        return ""
    if language == "en":
        return f"on {article(background_en(background, pattern=says_pattern))} background"
    return f"{background_zh(background, pattern=says_pattern)}背景上的"


def _pinned_part(concept: Concept, rng: random.Random) -> int | None:
    """Return the part whose color the request names, in a third of those that have one to name."""
    nameable = [index for index, part in enumerate(concept.parts) if part.names and len(part.colors) > 1]
    return rng.choice(nameable) if nameable and rng.random() < 0.35 else None


def _name(concept: Concept, index: int) -> tuple[str, str]:
    names = concept.parts[index].names
    assert names is not None
    return names


# Terse words


def _terse(scene: Scene, rng: random.Random, language: Language) -> _Described:
    groups: dict[tuple[str, str], list[Object]] = {}
    for item in scene.objects:
        groups.setdefault((item.color, item.shape), []).append(item)
    named = list(groups.values())
    if len(named) > _MAX_KINDS or (len(named) > 1 and rng.random() < _SUBSET):
        named = rng.sample(named, rng.randint(1, min(len(named) - 1, _MAX_KINDS)))
    rng.shuffle(named)
    says_place, says_size = rng.random() < 0.5, rng.random() < 0.25
    background = scene.background if rng.random() < 0.5 else None
    says_pattern = rng.random() < 0.4
    wanted: list[Wanted] = []
    phrases = []
    for group in named:
        says_color = rng.random() < 0.92
        placed = says_place and len(group) == 1 and rng.random() < 0.9
        for item in group:
            colors = frozenset([item.color]) if says_color else None
            wanted.append(Wanted(item.shape, colors, item.place if placed else None))
        describe = _group_en if language == "en" else _group_zh
        phrases.append(describe(group, rng, says_color, says_size, placed))
    words = _join(phrases, rng, language)
    if background:
        words = _on(background, words, language, pattern=says_pattern)
    return _Described(words, tuple(wanted), background.color if background else None)


def _group_en(group: Sequence[Object], rng: random.Random, color: bool, size: bool, placed: bool) -> str:
    size = size and len({item.size for item in group}) == 1
    fill = len({item.fill for item in group}) == 1 and rng.random() < 0.15
    phrase = phrase_en(group[0], color=color, size=size, fill=fill)
    if len(group) > 1:
        return f"{NUMBERS_EN[len(group)]} {phrase.removesuffix(group[0].shape)}{plural(group[0].shape)}"
    if placed:
        return f"{article(phrase)} {rng.choice(PLACES_EN[group[0].place])}"
    return article(phrase)


def _group_zh(group: Sequence[Object], rng: random.Random, color: bool, size: bool, placed: bool) -> str:
    size = size and len({item.size for item in group}) == 1
    fill = len({item.fill for item in group}) == 1 and rng.random() < 0.15
    phrase = f"{NUMBERS_ZH[len(group)]}个{phrase_zh(group[0], color=color, size=size, fill=fill)}"
    return f"{PLACES_ZH[group[0].place]}的{phrase}" if placed else phrase


def _on(background: Background, words: str, language: Language, *, pattern: bool) -> str:
    if language == "en":
        return f"{words} on {article(background_en(background, pattern=pattern))} background"
    return f"{background_zh(background, pattern=pattern)}背景上的{words}"


def _join(phrases: Sequence[str], rng: random.Random, language: Language) -> str:
    if language == "zh":
        return ("和" if rng.random() < 0.6 else "、").join(phrases)
    if len(phrases) == 1:
        return phrases[0]
    if rng.random() < 0.3:
        return ", ".join(phrases)
    return f"{', '.join(phrases[:-1])} and {phrases[-1]}"
