"""Questions about a scene with their answers, and talk about the world without a picture."""

import random
from collections.abc import Callable
from dataclasses import dataclass

from training.world.captions import background_sentence, caption_of
from training.world.concepts import CONCEPTS, SETTINGS, Concept
from training.world.objects import COLORS, PLACES, Object, Scene, Shape
from training.world.splits import Split
from training.world.words import (
    COLORS_ZH,
    NUMBERS_EN,
    NUMBERS_ZH,
    PLACES_EN,
    PLACES_ZH,
    SHAPES_ZH,
    SIZES_ZH,
    Language,
    article,
    background_zh,
    phrase_en,
    phrase_zh,
    plural,
)


@dataclass(frozen=True, slots=True)
class Question:
    """A question and the answer to it, in one language."""

    kind: str
    text: str
    answer: str
    language: Language


_Asked = tuple[tuple[str, ...], str]  # ways to ask, of which the last is held out; the answer
_NEW_PHRASING = 0.5  # of the held-out split


def questions_of(scene: Scene, seed: int, split: Split = "train", language: Language = "en") -> list[Question]:
    """Return one question of every kind that the scene has an answer to, in random order; pure."""
    rng = random.Random(f"questions {split} {seed} {language}")
    found = []
    for kind, asked in (_EN if language == "en" else _ZH).items():
        pair = asked(scene, rng)
        if pair is not None:
            found.append(_question(kind, pair, rng, split, language))
    rng.shuffle(found)
    return found


def sample_talk(seed: int, split: Split = "train", language: Language = "en") -> Question:
    """Return a question without a picture: what a concept looks like, where a setting is, a greeting."""
    rng = random.Random(f"talk {split} {seed} {language}")
    kind = rng.choice(tuple(_TALK))
    english, chinese = _TALK[kind](rng)
    return _question(kind, english if language == "en" else chinese, rng, split, language)


def _question(kind: str, asked: _Asked, rng: random.Random, split: Split, language: Language) -> Question:
    ways, answer = asked
    is_new = split == "held_out" and rng.random() < _NEW_PHRASING
    text = ways[-1] if is_new else rng.choice(ways[:-1])
    if language == "en" and rng.random() < 0.5:
        text = text[0].upper() + text[1:]
    return Question(kind, text, answer, language)


def _unique_shape(scene: Scene, rng: random.Random) -> Object | None:
    shapes = [item.shape for item in scene.objects]
    unique = [item for item in scene.objects if shapes.count(item.shape) == 1]
    return rng.choice(unique) if unique else None


def _some(rng: random.Random, scene: Scene) -> tuple[str, Shape]:
    """Return a color and a shape that may or may not be there, each about as often."""
    item = rng.choice(scene.objects)
    color = item.color if rng.random() < 0.7 else rng.choice(list(COLORS))
    shape = item.shape if rng.random() < 0.7 else rng.choice(list(Shape))
    return color, shape


# English


def _describe(scene: Scene, rng: random.Random) -> _Asked:
    ways = (
        "describe this picture",
        "describe this image",
        "what is in this image?",
        "what do you see in this picture?",
        "what is in this picture?",
    )
    return ways, caption_of(scene)


def _count(scene: Scene, rng: random.Random) -> _Asked:
    number = len(scene.objects)
    ways = (
        "how many objects are there?",
        "how many objects do you see?",
        "how many objects are in this picture?",
        "how many objects do you see in this picture?",
    )
    return ways, f"There {'is' if number == 1 else 'are'} {NUMBERS_EN[number]} object{'' if number == 1 else 's'}."


def _count_shape(scene: Scene, rng: random.Random) -> _Asked:
    _, shape = _some(rng, scene)
    number = sum(item.shape is shape for item in scene.objects)
    name = str(shape) if number == 1 else plural(shape)
    ways = (
        f"how many {plural(shape)} are there?",
        f"how many {plural(shape)} do you see?",
        f"how many {plural(shape)} are in this picture?",
        f"how many {plural(shape)} do you see in this picture?",
    )
    return ways, f"There {'is' if number == 1 else 'are'} {NUMBERS_EN[number]} {name}."


def _color(scene: Scene, rng: random.Random) -> _Asked | None:
    item = _unique_shape(scene, rng)
    if item is None:
        return None
    ways = (
        f"what color is the {item.shape}?",
        f"what is the color of the {item.shape}?",
        f"the {item.shape} is what color?",
        f"what color is the {item.shape} in this picture?",
    )
    return ways, f"The {item.shape} is {item.color}."


def _place(scene: Scene, rng: random.Random) -> _Asked | None:
    item = _unique_shape(scene, rng)
    if item is None:
        return None
    ways = (
        f"where is the {item.shape}?",
        f"where is the {item.shape} placed?",
        f"where do you see the {item.shape}?",
        f"where in this picture is the {item.shape}?",
    )
    return ways, f"The {item.shape} is in the {item.place}."


def _what(scene: Scene, rng: random.Random) -> _Asked:
    place = rng.choice(scene.objects).place if rng.random() < 0.7 else rng.choice(PLACES)
    item = next((item for item in scene.objects if item.place == place), None)
    where = rng.choice(PLACES_EN[place])
    ways = (f"what is {where}?", f"what do you see {where}?", f"what object is {where}?", f"what is there {where}?")
    if item is None:
        return ways, "There is nothing."
    return ways, f"There is a {phrase_en(item, size=True, fill=True)}."


def _is_there(scene: Scene, rng: random.Random) -> _Asked:
    color, shape = _some(rng, scene)
    is_there = any(item.color == color and item.shape is shape for item in scene.objects)
    thing = article(f"{color} {shape}")
    ways = (
        f"is there {thing}?",
        f"do you see {thing}?",
        f"is there {thing} in this picture?",
        f"do you see {thing} in this picture?",
    )
    return ways, f"Yes, there is {thing}." if is_there else f"No, there is no {color} {shape}."


def _background(scene: Scene, rng: random.Random) -> _Asked:
    ways = (
        "what is the background?",
        "what color is the background?",
        "describe the background",
        "what is the color of the background?",
    )
    return ways, background_sentence(scene.background)


def _size(scene: Scene, rng: random.Random) -> _Asked | None:
    item = _unique_shape(scene, rng)
    if item is None:
        return None
    ways = (
        f"how large is the {item.shape}?",
        f"what size is the {item.shape}?",
        f"what is the size of the {item.shape}?",
    )
    return ways, f"The {item.shape} is {item.size}."


def _subject(scene: Scene, rng: random.Random) -> _Asked | None:
    if scene.subject is None:
        return None
    concept = CONCEPTS[scene.subject.concept]
    ways = ("what does this picture show?", "what is this?", "what does this image show?", "what is this picture?")
    return ways, f"It is {' '.join([concept.with_article, scene.subject.setting]).strip()}."


# Chinese


def _describe_zh(scene: Scene, rng: random.Random) -> _Asked:
    ways = ("请描述这张图片", "请描述一下这张图片", "这张图片里有什么？", "描述一下这张图片")
    return ways, caption_of(scene)


def _count_zh(scene: Scene, rng: random.Random) -> _Asked:
    ways = ("有几个物体？", "这张图片里有几个物体？", "图片里有几个物体？")
    return ways, f"有{NUMBERS_ZH[len(scene.objects)]}个物体。"


def _count_shape_zh(scene: Scene, rng: random.Random) -> _Asked:
    _, shape = _some(rng, scene)
    number = sum(item.shape is shape for item in scene.objects)
    name = SHAPES_ZH[shape]
    ways = (f"有几个{name}？", f"这张图片里有几个{name}？", f"图片里有几个{name}？")
    return ways, f"有{NUMBERS_ZH[number]}个{name}。" if number else f"没有{name}。"


def _color_zh(scene: Scene, rng: random.Random) -> _Asked | None:
    item = _unique_shape(scene, rng)
    if item is None:
        return None
    name = SHAPES_ZH[item.shape]
    ways = (f"{name}是什么颜色？", f"图片里的{name}是什么颜色？", f"这张图片里的{name}是什么颜色？")
    return ways, f"{name}是{COLORS_ZH[item.color]}的。"


def _place_zh(scene: Scene, rng: random.Random) -> _Asked | None:
    item = _unique_shape(scene, rng)
    if item is None:
        return None
    name = SHAPES_ZH[item.shape]
    ways = (f"{name}在哪里？", f"图片里的{name}在哪里？", f"这张图片里的{name}在哪里？")
    return ways, f"{name}在{PLACES_ZH[item.place]}。"


def _what_zh(scene: Scene, rng: random.Random) -> _Asked:
    place = rng.choice(scene.objects).place if rng.random() < 0.7 else rng.choice(PLACES)
    item = next((item for item in scene.objects if item.place == place), None)
    where = PLACES_ZH[place]
    ways = (f"{where}有什么？", f"图片{where}有什么？", f"这张图片{where}有什么？")
    return ways, f"有一个{phrase_zh(item, size=True, fill=True)}。" if item else "什么也没有。"


def _is_there_zh(scene: Scene, rng: random.Random) -> _Asked:
    color, shape = _some(rng, scene)
    is_there = any(item.color == color and item.shape is shape for item in scene.objects)
    thing = COLORS_ZH[color] + SHAPES_ZH[shape]
    ways = (f"有{thing}吗？", f"图片里有{thing}吗？", f"这张图片里有{thing}吗？")
    return ways, f"有，有{thing}。" if is_there else f"没有{thing}。"


def _background_zh(scene: Scene, rng: random.Random) -> _Asked:
    ways = ("背景是什么？", "背景是什么颜色？", "图片的背景是什么？", "图片的背景是什么颜色？")
    return ways, f"背景是{background_zh(scene.background, pattern=True)}。"


def _size_zh(scene: Scene, rng: random.Random) -> _Asked | None:
    item = _unique_shape(scene, rng)
    if item is None:
        return None
    name = SHAPES_ZH[item.shape]
    ways = (f"{name}有多大？", f"图片里的{name}有多大？", f"这张图片里的{name}有多大？")
    return ways, f"{name}是{SIZES_ZH[item.size]}的。"


def _subject_zh(scene: Scene, rng: random.Random) -> _Asked | None:
    if scene.subject is None:
        return None
    where = SETTINGS[scene.subject.setting].chinese if scene.subject.setting else ""
    ways = ("这是什么？", "这张图片是什么？", "图片里是什么？")
    return ways, f"这是{where}{CONCEPTS[scene.subject.concept].chinese}。"


_EN: dict[str, Callable[[Scene, random.Random], _Asked | None]] = {
    "describe": _describe,
    "count": _count,
    "count_shape": _count_shape,
    "color": _color,
    "place": _place,
    "what": _what,
    "is_there": _is_there,
    "background": _background,
    "size": _size,
    "subject": _subject,
}
_ZH: dict[str, Callable[[Scene, random.Random], _Asked | None]] = {
    "describe": _describe_zh,
    "count": _count_zh,
    "count_shape": _count_shape_zh,
    "color": _color_zh,
    "place": _place_zh,
    "what": _what_zh,
    "is_there": _is_there_zh,
    "background": _background_zh,
    "size": _size_zh,
    "subject": _subject_zh,
}


# Without a picture


def _looks(rng: random.Random) -> tuple[_Asked, _Asked]:
    concept = CONCEPTS[rng.choice(list(CONCEPTS))]
    name = concept.with_article
    english = (
        f"what does {name} look like?",
        f"how does {name} look?",
        f"tell me what {name} looks like",
        f"describe {name}",
    )
    chinese = (f"{concept.chinese}是什么样子？", f"请描述一下{concept.chinese}", f"描述一下{concept.chinese}")
    return (english, f"It has {_listed(concept)}."), (chinese, f"{concept.chinese}有{_listed_zh(concept)}。")


def _usual(concept: Concept) -> list[Object]:
    return [Object(part.shape, part.colors[0], part.size, part.fill, part.place) for part in concept.parts]


def _listed(concept: Concept) -> str:
    phrases = [f"{article(phrase_en(item))} in the {item.place}" for item in _usual(concept)]
    return " and ".join([", ".join(phrases[:-1]), phrases[-1]]) if len(phrases) > 1 else phrases[0]


def _listed_zh(concept: Concept) -> str:
    return "、".join(f"{PLACES_ZH[item.place]}的{phrase_zh(item)}" for item in _usual(concept))


def _looks_of_setting(rng: random.Random) -> tuple[_Asked, _Asked]:
    setting = rng.choice(list(SETTINGS.values()))
    english = (
        f"what does the background look like {setting.name}?",
        f"how does the background look {setting.name}?",
        f"describe the background {setting.name}",
    )
    chinese = (
        f"{setting.chinese}背景是什么颜色？",
        f"{setting.chinese}背景是什么？",
        f"{setting.chinese}背景是什么样子？",
    )
    return (
        (english, background_sentence(setting.background)),
        (chinese, f"背景是{background_zh(setting.background, pattern=True)}。"),
    )


def _greeting(rng: random.Random) -> tuple[_Asked, _Asked]:
    return (
        (("hello", "hi", "good day", "hello!"), "Hello! What would you like me to draw?"),
        (("你好", "您好", "你好！"), "你好！你想让我画什么？"),
    )


def _ability(rng: random.Random) -> tuple[_Asked, _Asked]:
    return (
        (
            ("what can you do?", "what can you draw?", "what do you do?"),
            "I draw pictures, describe them and answer questions.",
        ),
        (("你能做什么？", "你会画什么？", "你会做什么？"), "我能画图片，能描述图片，也能回答问题。"),
    )


_TALK: dict[str, Callable[[random.Random], tuple[_Asked, _Asked]]] = {
    "looks": _looks,
    "setting": _looks_of_setting,
    "greeting": _greeting,
    "ability": _ability,
}
