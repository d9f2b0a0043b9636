"""What training never sees: compositions and phrasings.

A composition is (color, shape, place); every ninth of those that no concept needs is held out, by a fixed hash. Scenes
of the train split have none of them, scenes of the held-out split at least one. Of concepts, some pairs with a setting
are held out in the same way, and of the ways to ask some combinations of words, each of whose words training knows
from other combinations. So a figure on the held-out split cannot come from memory.
"""

import hashlib
from typing import Literal

from training.world.concepts import COMPOSITIONS
from training.world.objects import Object

Split = Literal["train", "held_out"]
SPLITS: tuple[Split, ...] = ("train", "held_out")
SHARE = 9  # one in so many is held out


def is_held_out(*words: str) -> bool:
    """Return whether this combination of words is kept from training; a pure function of them."""
    digest = hashlib.sha256("\x1f".join(words).encode()).digest()
    return int.from_bytes(digest[:8], "big") % SHARE == 0


def composition_is_held_out(color: str, shape: str, place: str) -> bool:
    """Return whether training never has an object of this color and shape in this place."""
    return (color, shape, place) not in COMPOSITIONS and is_held_out(color, shape, place)


def object_is_held_out(item: Object) -> bool:
    """Return whether training never has this object in this place, whatever its size and fill."""
    return composition_is_held_out(item.color, item.shape, item.place)
