"""Scenes as long captions, and back.

The grammar is regular: the background first, then one sentence per object in reading order, whose last two words are
the place and before which all its other attributes have been said. A causal text encoder can so carry a whole object
in its place token. With one token per word and sign, the background takes 7 tokens and an object 17: four objects
fill CLIP's 75 exactly, and the fifth begins the next 75 with a whole sentence.
"""

import re

from training.world.objects import BACKGROUNDS, COLORS, PLACES, Background, Fill, Object, Pattern, Scene, Shape, Size


def caption_of(scene: Scene) -> str:
    """Return the long caption, in English."""
    return " ".join([background_sentence(scene.background), *map(object_sentence, scene.objects)])


def background_sentence(background: Background) -> str:
    """Return the first sentence of a caption."""
    return f"The background is a {background.pattern} {background.color}."


def object_sentence(item: Object) -> str:
    """Return the sentence of one object."""
    return f"There is a {item.size} {item.fill} {item.color} {item.shape}, and it is placed in the {item.place}."


def change_sentences(before: Scene, after: Scene) -> str:
    """Return what is different in the second scene; "" where nothing is.

    It names what changes and what it becomes with all attributes. A small language model that writes this first has
    found out which object is meant before it writes the caption, which then is a copy with one exception. What is
    likely to be in the instruction comes first, and leads to the rest.
    """
    told = [] if before.background == after.background else [_told(after.background)]
    gone = [item for item in before.objects if item not in after.objects]
    new = [item for item in after.objects if item not in before.objects]
    told += [f"{_found(old)} is now a {_placed(item)}." for old, item in zip(gone, new, strict=False)]
    told += [f"{_found(item)} is gone." for item in gone[len(new) :]]
    told += [f"A {_placed(item)} is new." for item in new[len(gone) :]]
    return " ".join(told)


def _told(background: Background) -> str:
    return f"The background is now a {background.pattern} {background.color}."


def _found(item: Object) -> str:
    return f"The {item.color} {item.shape} in the {item.place}, {item.size} and {item.fill},"


def _placed(item: Object) -> str:
    return f"{item.size} {item.fill} {item.color} {item.shape} in the {item.place}"


_BACKGROUND = re.compile(rf"background is an? ({'|'.join(Pattern)}) ({'|'.join(BACKGROUNDS)})\b", re.IGNORECASE)
_OBJECT = re.compile(
    rf"\b({'|'.join(Size)}) ({'|'.join(Fill)}) ({'|'.join(COLORS)}) ({'|'.join(Shape)})"
    rf",? and it is placed in the ({'|'.join(PLACES)})\b",
    re.IGNORECASE,
)


def read_background(caption: str) -> Background | None:
    """Return the background that a caption names; None where it names none."""
    match = _BACKGROUND.search(caption)
    return match and Background(match[2].lower(), Pattern(match[1].lower()))


def read_objects(caption: str) -> list[Object]:
    """Return the objects that a caption names, in its order; what is not a sentence of the grammar is left out.

    The list is what was written: it may be empty, too long, or have two objects in one place.
    """
    return [
        Object(Shape(shape), color, Size(size), Fill(fill), place)
        for size, fill, color, shape, place in (
            [word.lower() for word in match.groups()] for match in _OBJECT.finditer(caption)
        )
    ]


def scene_of(caption: str) -> Scene:
    """Return the scene of a canonical caption.

    Raises:
        ValueError: this is not the caption of a scene.
    """
    background = read_background(caption)
    if background is None:
        raise ValueError(f"no background in the caption {caption[:80]!r}")
    scene = Scene(background, tuple(read_objects(caption)))
    if caption_of(scene) != caption:
        raise ValueError(f"not a canonical caption: {caption[:80]!r}")
    return scene
