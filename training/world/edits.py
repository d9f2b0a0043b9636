"""Edits: an instruction, the scene before and the scene after it.

Instructions name objects so that one is meant for certain: by a concept's own word ("the roof"), by color and shape,
or by its place where there are two alike. The scene after is a scene of the same split, and of the same subject while
its parts are where they were.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import count

from training.world.concepts import CONCEPTS
from training.world.objects import (
    BACKGROUNDS,
    MAX_OBJECTS,
    PLACES,
    Background,
    Fill,
    Object,
    Pattern,
    Scene,
    Shape,
    Size,
    Subject,
    stands_out,
)
from training.world.scenes import sample_scene, visible_on
from training.world.splits import Split, object_is_held_out
from training.world.words import (
    COLORS_ZH,
    FILLS_ZH,
    PATTERNS_ZH,
    PLACES_ZH,
    SHAPES_ZH,
    Language,
    article,
    background_en,
    background_zh,
    phrase_en,
    phrase_zh,
)


@dataclass(frozen=True, slots=True)
class Edit:
    """What is to change, said in words, and the scenes on both sides of it."""

    kind: str
    instruction: str
    language: Language
    before: Scene
    after: Scene


@dataclass(frozen=True, slots=True)
class _Change:
    after: Scene
    slots: dict[str, str]


# The last of each is held out. {x} is an object, {y} what it becomes.
INSTRUCTIONS_EN = {
    "recolor": ("make {x} {y}", "change the color of {x} to {y}", "color {x} {y}", "paint {x} {y}", "turn {x} {y}"),
    "remove": ("remove {x}", "delete {x}", "take {x} away", "erase {x}", "take away {x}"),
    "add": ("add {y} {p}", "put {y} {p}", "place {y} {p}", "draw {y} {p}", "paint {y} {p}"),
    "background": (
        "change the background to {y}",
        "make the background {y}",
        "turn the background {y}",
        "paint the background {y}",
        "color the background {y}",
    ),
    "resize": ("make {x} {y}", "change the size of {x} to {y}", "change {x} to {y}"),
    "move": ("move {x} to the {y}", "put {x} in the {y}", "place {x} in the {y}", "take {x} to the {y}"),
    "reshape": ("turn {x} into {y}", "replace {x} with {y}", "change {x} to {y}", "make {x} into {y}"),
    "fill": ("make {x} {y}", "turn {x} {y}", "change {x} to {y}"),
    "again": (
        "again {w}",
        "draw it again {w}",
        "the same {w}",
        "the same picture {w}",
        "now {w}",
        "again, but {w}",
        "once more {w}",
        "draw the same again {w}",
    ),
}
INSTRUCTIONS_ZH = {
    "recolor": ("把{x}变成{y}", "把{x}的颜色改成{y}", "将{x}涂成{y}", "把{x}涂成{y}"),
    "remove": ("去掉{x}", "删除{x}", "把{x}去掉", "把{x}删除"),
    "add": ("在{p}加{y}", "请在{p}画{y}", "在{p}放{y}", "请在{p}加{y}"),
    "background": ("把背景改成{y}", "将背景变成{y}", "背景改成{y}", "把背景变成{y}"),
    "resize": ("把{x}变成{y}", "将{x}改成{y}", "把{x}改成{y}"),
    "move": ("把{x}移到{y}", "将{x}移到{y}", "把{x}放到{y}", "将{x}放到{y}"),
    "reshape": ("把{x}变成{y}", "将{x}换成{y}", "把{x}换成{y}"),
    "fill": ("把{x}变成{y}", "将{x}改成{y}", "把{x}改成{y}"),
    "again": ("再画一次，{w}", "同样的，但{w}", "还是这个，但{w}", "同样的，{w}"),
}
KINDS = tuple(kind for kind in INSTRUCTIONS_EN if kind != "again")
# In conversations people also ask for the same again with a change, and what is hard to learn comes more often.
TALKED_KINDS = (*KINDS, "recolor", "remove", "resize", "move", "fill", "again", "again", "again")
_NEW_PHRASING = 0.5  # of the held-out split
_FAR = 1_000_003  # between the seeds of scenes that are tried one after another


def sample_edit(seed: int, split: Split = "train", language: Language = "en") -> Edit:
    """Return the edit of this seed."""
    rng = random.Random(f"edit {split} {seed} {language}")
    for again in count():
        before = sample_scene(seed + again * _FAR, split, concepts=0.4)
        if edit := _try(before, rng, split, language):
            return edit
    raise AssertionError("unreachable")


def edit_of(
    before: Scene,
    seed: int,
    split: Split = "train",
    language: Language = "en",
    kinds: Sequence[str] = KINDS,
) -> Edit:
    """Return an edit of this scene, of one of these kinds; a pure function of its arguments."""
    rng = random.Random(f"edit of {split} {seed} {language}")
    while True:
        if edit := _try(before, rng, split, language, kinds):
            return edit


def _try(
    before: Scene, rng: random.Random, split: Split, language: Language, kinds: Sequence[str] = KINDS
) -> Edit | None:
    kind = rng.choice(kinds)
    change = _CHANGES[kind](before, rng, language)
    if change is None or change.after == before:
        return None
    if split == "train" and any(map(object_is_held_out, change.after.objects)):
        return None
    instruction = rng.choice(instructions(kind, split, language, rng)).format(**change.slots)
    if language == "en" and rng.random() < 0.5:
        instruction = instruction[0].upper() + instruction[1:]
    if rng.random() < 0.5:
        instruction += "." if language == "en" else "。"
    return Edit(kind, instruction, language, before, change.after)


def instructions(kind: str, split: Split, language: Language, rng: random.Random) -> tuple[str, ...]:
    """Return the ways to say it that a split may use this time."""
    ways = (INSTRUCTIONS_EN if language == "en" else INSTRUCTIONS_ZH)[kind]
    return ways[-1:] if split == "held_out" and rng.random() < _NEW_PHRASING else ways[:-1]


def reference(item: Object, scene: Scene, language: Language, rng: random.Random) -> str:
    """Return words that mean this object of the scene and no other."""
    name = _own_name(item, scene, language)
    if name is not None and rng.random() < 0.6:
        return f"the {name}" if language == "en" else name
    same_shape = sum(other.shape is item.shape for other in scene.objects)
    alike = sum(other.shape is item.shape and other.color == item.color for other in scene.objects)
    says_color = same_shape > 1 or rng.random() < 0.6
    says_place = alike > 1 or rng.random() < 0.1
    if language == "en":
        return f"the {phrase_en(item, color=says_color)}" + (f" in the {item.place}" if says_place else "")
    return (f"{PLACES_ZH[item.place]}的" if says_place else "") + phrase_zh(item, color=says_color)


def _own_name(item: Object, scene: Scene, language: Language) -> str | None:
    """Return the concept's word for one of its parts: "roof"."""
    if scene.subject is None:
        return None
    parts = CONCEPTS[scene.subject.concept].parts
    names = next((part.names for part in parts if (part.place, part.shape) == (item.place, item.shape)), None)
    return names and names[0 if language == "en" else 1]


def _replaced(scene: Scene, old: Object, new: Object | None) -> Scene:
    objects = [item for item in scene.objects if item is not old] + ([new] if new else [])
    objects.sort(key=lambda item: PLACES.index(item.place))
    is_same_part = new is not None and (new.shape, new.place) == (old.shape, old.place)
    return replace(scene, objects=tuple(objects), subject=scene.subject if is_same_part else None)


def _recolor(scene: Scene, rng: random.Random, language: Language) -> _Change | None:
    item = rng.choice(scene.objects)
    color = rng.choice(visible_on(scene.background))
    after = _replaced(scene, item, replace(item, color=color))
    return _Change(
        after, {"x": reference(item, scene, language, rng), "y": color if language == "en" else COLORS_ZH[color]}
    )


def _remove(scene: Scene, rng: random.Random, language: Language) -> _Change | None:
    if len(scene.objects) == 1:
        return None
    item = rng.choice(scene.objects)
    return _Change(_replaced(scene, item, None), {"x": reference(item, scene, language, rng)})


def _add(scene: Scene, rng: random.Random, language: Language) -> _Change | None:
    free = _free_places(scene)
    if len(scene.objects) == MAX_OBJECTS:
        return None
    size = rng.choice(list(Size))
    fill = Fill.OUTLINED if size is not Size.SMALL and rng.random() < 0.25 else Fill.FILLED
    new = Object(rng.choice(list(Shape)), rng.choice(visible_on(scene.background)), size, fill, rng.choice(free))
    says_fill = fill is Fill.OUTLINED or rng.random() < 0.3
    objects = sorted([*scene.objects, new], key=lambda item: PLACES.index(item.place))
    if language == "en":
        slots = {"y": article(phrase_en(new, size=True, fill=says_fill)), "p": f"in the {new.place}"}
    else:
        slots = {"y": f"一个{phrase_zh(new, size=True, fill=says_fill)}", "p": PLACES_ZH[new.place]}
    return _Change(replace(scene, objects=tuple(objects)), slots)


def _change_background(scene: Scene, rng: random.Random, language: Language) -> _Change | None:
    old = scene.background
    what = rng.choice(("color", "pattern", "both"))
    background = Background(
        old.color if what == "pattern" else rng.choice(list(BACKGROUNDS)),
        old.pattern if what == "color" else rng.choice(list(Pattern)),
    )
    if not all(stands_out(item.color, background) for item in scene.objects):
        return None
    if what == "pattern":
        words = str(background.pattern) if language == "en" else PATTERNS_ZH[background.pattern]
    else:
        words = (background_en if language == "en" else background_zh)(background, pattern=what == "both")
    subject = scene.subject and Subject(scene.subject.concept)
    return _Change(replace(scene, background=background, subject=subject), {"y": words})


def _resize(scene: Scene, rng: random.Random, language: Language) -> _Change | None:
    item = rng.choice(scene.objects)
    sizes = list(Size)
    target = sizes.index(item.size) + rng.choice((-1, 1))
    if not 0 <= target < len(sizes) or (target == 0 and item.fill is Fill.OUTLINED):
        return None
    grows = target > sizes.index(item.size)
    words = ("larger" if grows else "smaller") if language == "en" else ("更大" if grows else "更小")
    after = _replaced(scene, item, replace(item, size=sizes[target]))
    return _Change(after, {"x": reference(item, scene, language, rng), "y": words})


def _move(scene: Scene, rng: random.Random, language: Language) -> _Change | None:
    item, place = rng.choice(scene.objects), rng.choice(_free_places(scene))
    after = _replaced(scene, item, replace(item, place=place))
    return _Change(
        after, {"x": reference(item, scene, language, rng), "y": place if language == "en" else PLACES_ZH[place]}
    )


def _reshape(scene: Scene, rng: random.Random, language: Language) -> _Change | None:
    item, shape = rng.choice(scene.objects), rng.choice(list(Shape))
    after = _replaced(scene, item, replace(item, shape=shape))
    words = article(shape) if language == "en" else f"一个{SHAPES_ZH[shape]}"
    return _Change(after, {"x": reference(item, scene, language, rng), "y": words})


def _refill(scene: Scene, rng: random.Random, language: Language) -> _Change | None:
    item = rng.choice(scene.objects)
    if item.size is Size.SMALL:
        return None
    fill = Fill.FILLED if item.fill is Fill.OUTLINED else Fill.OUTLINED
    after = _replaced(scene, item, replace(item, fill=fill))
    words = str(fill) if language == "en" else FILLS_ZH[fill]
    return _Change(after, {"x": reference(item, scene, language, rng), "y": words})


def _again(scene: Scene, rng: random.Random, language: Language) -> _Change | None:
    kind = rng.choice(("recolor", "recolor", "recolor", "add", "background", "remove"))
    change = _CHANGES[kind](scene, rng, language)
    if change is None:
        return None
    slots, english = change.slots, language == "en"
    if kind == "recolor":
        old = next((old for old, new in zip(scene.objects, change.after.objects, strict=True) if old != new), None)
        name = None if old is None else _name(old, scene, language)
        if name is None:
            return None
        words = f"with {article(slots['y'] + ' ' + name)}" if english else f"{name}是{slots['y']}的"
    elif kind == "add":
        words = f"with {slots['y']} {slots['p']}" if english else f"{slots['p']}有{slots['y']}"
    elif kind == "background":
        words = f"on a {slots['y']} background" if english else f"背景是{slots['y']}的"
    else:
        words = f"without {slots['x']}" if english else f"不要{slots['x']}"
    return _Change(change.after, {"w": words})


def _name(item: Object, scene: Scene, language: Language) -> str | None:
    """Return the bare word for an object, without its color; None where it could mean another."""
    if name := _own_name(item, scene, language):
        return name
    if sum(other.shape is item.shape for other in scene.objects) > 1:
        return None
    return str(item.shape) if language == "en" else SHAPES_ZH[item.shape]


def _free_places(scene: Scene) -> list[str]:
    taken = {item.place for item in scene.objects}
    return [place for place in PLACES if place not in taken]


_CHANGES: dict[str, Callable[[Scene, random.Random, Language], _Change | None]] = {
    "recolor": _recolor,
    "remove": _remove,
    "add": _add,
    "background": _change_background,
    "resize": _resize,
    "move": _move,
    "reshape": _reshape,
    "fill": _refill,
    "again": _again,
}
