"""Scenes by the million: each is a pure function of a seed and the split.

Three in ten scenes are concepts in a setting or on some background, the others are free: one to five objects of any
kind anywhere, some of them alike. See `splits` for what tells the splits apart.
"""

import random
from functools import cache

from training.world.concepts import CONCEPTS, SETTINGS, Concept, fits, groups_of, settings_of, visible_colors
from training.world.objects import (
    BACKGROUNDS,
    COLORS,
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
from training.world.splits import Split, composition_is_held_out, is_held_out, object_is_held_out

CONCEPT_SHARE = 0.3
_COUNTS = {1: 0.1, 2: 0.13, 3: 0.17, 4: 0.2, 5: 0.4}
_PATTERNS = {Pattern.PLAIN: 0.4, Pattern.GRADIENT: 0.2, Pattern.STRIPED: 0.2, Pattern.CHECKED: 0.2}
_ALIKE = 0.2  # an object is like the one before it
_OUTLINED = 0.3  # of what is not small: a small outline has no room inside
_USUAL = 0.5  # a concept's parts have their usual color rather than any
_IN_SETTING = 0.6  # of concepts that can be in one


def sample_scene(seed: int, split: Split = "train", *, concepts: float = CONCEPT_SHARE) -> Scene:
    """Return the scene of this seed; `concepts` is the share of scenes that show one."""
    rng = random.Random(f"{split} {seed}")
    sample = _concept_scene if rng.random() < concepts else _free_scene
    while True:
        scene = sample(rng, split)
        if scene is not None and scene_fits(scene, split):
            return scene


def scene_fits(scene: Scene, split: Split) -> bool:
    """Return whether a scene belongs to a split."""
    is_new = any(map(object_is_held_out, scene.objects))
    if split == "train":
        return not is_new and not (scene.subject and subject_is_held_out(scene.subject, scene.background))
    return is_new or bool(scene.subject and subject_is_held_out(scene.subject, scene.background))


def subject_is_held_out(subject: Subject, background: Background) -> bool:
    """Return whether training never shows this concept in this setting, or on a background of this color."""
    if CONCEPTS[subject.concept].background is not None:
        return False
    return is_held_out(subject.concept, subject.setting or background.color)


def _free_scene(rng: random.Random, split: Split) -> Scene | None:
    background = _background(rng)
    colors = visible_on(background)
    count = rng.choices(list(_COUNTS), list(_COUNTS.values()))[0]
    places = sorted(rng.sample(range(len(PLACES)), count))
    new = rng.randrange(count) if split == "held_out" else None
    objects: list[Object] = []
    for index, place in enumerate(places):
        item = _object(rng, colors, PLACES[place], objects[-1] if objects else None)
        for _ in range(100):
            if split == "train" and not object_is_held_out(item):
                break
            if split == "held_out" and (index != new or object_is_held_out(item)):
                break
            item = _object(rng, colors, PLACES[place], None)
        objects.append(item)
    return Scene(background, tuple(objects))


def _object(rng: random.Random, colors: tuple[str, ...], place: str, before: Object | None) -> Object:
    if before is not None and rng.random() < _ALIKE:
        return Object(before.shape, before.color, before.size, before.fill, place)
    size = rng.choice(list(Size))
    is_line = size is not Size.SMALL and rng.random() < _OUTLINED
    return Object(rng.choice(list(Shape)), rng.choice(colors), size, Fill.OUTLINED if is_line else Fill.FILLED, place)


def _background(rng: random.Random) -> Background:
    pattern = rng.choices(list(_PATTERNS), list(_PATTERNS.values()))[0]
    return Background(rng.choice(list(BACKGROUNDS)), pattern)


@cache
def visible_on(background: Background) -> tuple[str, ...]:
    """Return the colors of objects that can be seen on a background."""
    return tuple(color for color in COLORS if stands_out(color, background))


def _concept_scene(rng: random.Random, split: Split) -> Scene | None:
    concept = CONCEPTS[rng.choice(list(CONCEPTS))]
    settings = settings_of(concept)
    if concept.background is not None:
        return scene_of_concept(concept, rng, split, background=concept.background)
    if settings and rng.random() < _IN_SETTING:
        return scene_of_concept(concept, rng, split, setting=rng.choice(settings))
    return scene_of_concept(concept, rng, split, background=_background(rng))


def _has_sky(concept: Concept) -> bool:
    """Return whether a concept has a sun or moon of its own, beside which there is no other."""
    return any(part.names is not None and part.names[0] in ("sun", "moon") for part in concept.parts)


def scene_of_concept(
    concept: Concept,
    rng: random.Random,
    split: Split,
    *,
    setting: str = "",
    background: Background | None = None,
) -> Scene | None:
    """Return a concept in a setting or on a background, or None where some part has no color for it."""
    if setting:
        background = SETTINGS[setting].background
    assert background is not None
    if not fits(concept, background):
        return None
    colors = [""] * len(concept.parts)
    for group in groups_of(concept):
        parts = [concept.parts[index] for index in group]
        possible = [
            color
            for color in visible_colors(parts[0], background)
            if split != "train" or not any(composition_is_held_out(color, part.shape, part.place) for part in parts)
        ]
        if not possible:
            return None
        usual = possible[0] == parts[0].colors[0] and rng.random() < _USUAL
        color = possible[0] if usual else rng.choice(possible)
        for index in group:
            colors[index] = color
    objects = [
        Object(part.shape, color, part.size, part.fill, part.place)
        for part, color in zip(concept.parts, colors, strict=True)
    ]
    extra = SETTINGS[setting].extra if setting else None
    has_room = extra is not None and len(objects) < MAX_OBJECTS and all(extra.place != item.place for item in objects)
    if extra is not None and has_room and not _has_sky(concept):
        objects = sorted([*objects, extra], key=lambda item: PLACES.index(item.place))
    return Scene(background, tuple(objects), Subject(concept.name, setting))
