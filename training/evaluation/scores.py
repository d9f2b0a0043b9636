"""How much of what was wanted is there: pictures and captions against scenes, requests and holes.

Objects are paired one to one: a picture with one star has one of two wanted stars. What a score divides by is always
the number of objects wanted, so objects that nobody asked for do not raise it; they are counted beside it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from training.evaluation.judge import Reading, Seen
from training.world.captions import read_background, read_objects
from training.world.objects import Object, Scene
from training.world.requests import Request, Wanted

W = TypeVar("W")


@dataclass(frozen=True, slots=True)
class Score:
    """Counts over objects; scores add up.

    placed: right in color and place. shaped: also in shape. exact: also in size and fill. extra: objects that were
    not wanted. background: pictures whose background is right; whole: pictures or captions without any mistake.
    """

    wanted: int = 0
    placed: int = 0
    shaped: int = 0
    exact: int = 0
    extra: int = 0
    pictures: int = 0
    background: int = 0
    whole: int = 0

    def __add__(self, other: "Score") -> "Score":
        return Score(*(getattr(self, name) + getattr(other, name) for name in self.__slots__))

    def shares(self) -> dict[str, float]:
        """Return the counts as shares of the objects, or pictures, that they are of."""
        objects, pictures = max(self.wanted, 1), max(self.pictures, 1)
        return {
            "color_and_place": self.placed / objects,
            "also_shape": self.shaped / objects,
            "also_size_and_fill": self.exact / objects,
            "extra_objects_per_picture": self.extra / pictures,
            "background": self.background / pictures,
            "whole": self.whole / pictures,
        }


def total(scores: Sequence[Score]) -> Score:
    """Return the sum of scores."""
    return sum(scores, Score())


def score_picture(scene: Scene, reading: Reading, *, only: Callable[[Object], bool] | None = None) -> Score:
    """Score what the judge read in a picture of a scene; with `only`, its objects that are meant."""
    return _score(scene, reading.objects, reading.background == scene.background, only)


def score_caption(scene: Scene, caption: str) -> Score:
    """Score a caption that should describe a scene: its objects, read from the words."""
    objects = [Seen.of(item) for item in read_objects(caption)]
    return _score(scene, objects, read_background(caption) == scene.background, None)


def _score(scene: Scene, seen: Sequence[Seen], background: bool, only: Callable[[Object], bool] | None) -> Score:
    wanted = [item for item in scene.objects if only is None or only(item)]

    def right(is_right: Callable[[Object, Seen], bool]) -> int:
        return matched(wanted, seen, is_right)

    exact = right(lambda item, there: there == Seen.of(item))
    taken = {item.place for item in scene.objects}
    extra = max(len(seen) - len(scene.objects), sum(there.place not in taken for there in seen))
    return Score(
        wanted=len(wanted),
        placed=right(lambda item, there: there.color == item.color and there.place == item.place),
        shaped=right(
            lambda item, there: (there.color, there.place, there.shape) == (item.color, item.place, item.shape)
        ),
        exact=exact,
        extra=extra,
        pictures=1,
        background=int(background),
        whole=int(background and extra == 0 and exact == len(scene.objects) == len(seen)),
    )


def score_request(request: Request, reading: Reading) -> Score:
    """Score a picture for a request: what it names in color, shape, and place where it names one."""
    return _score_request(request, reading.objects, reading.background.color)


def score_prompt(request: Request, caption: str) -> Score:
    """Score a caption that was written for a request, before any picture is drawn of it."""
    background = read_background(caption)
    return _score_request(
        request, [Seen.of(item) for item in read_objects(caption)], background.color if background else None
    )


def _score_request(request: Request, seen: Sequence[Seen], background: str | None) -> Score:
    shaped = matched(request.wanted, seen, lambda wanted, there: _accepts(wanted, there, any_shape=False))
    is_background = request.background in (None, background)
    return Score(
        wanted=len(request.wanted),
        placed=matched(request.wanted, seen, lambda wanted, there: _accepts(wanted, there, any_shape=True)),
        shaped=shaped,
        exact=shaped,  # a request's size and fill are not held against a picture
        extra=max(len(seen) - len(request.wanted), 0),
        pictures=1,
        background=int(is_background),
        whole=int(is_background and shaped == len(request.wanted)),
    )


def _accepts(wanted: Wanted, there: Seen, *, any_shape: bool) -> bool:
    return (
        (any_shape or there.shape is wanted.shape)
        and (wanted.colors is None or there.color in wanted.colors)
        and (wanted.place is None or there.place == wanted.place)
    )


def matched(wanted: Sequence[W], seen: Sequence[Seen], is_right: Callable[[W, Seen], bool]) -> int:
    """Return how many of the wanted can be had at once, each from another object (augmenting paths)."""
    owner: dict[int, int] = {}

    def find(index: int, tried: set[int]) -> bool:
        for place, there in enumerate(seen):
            if place not in tried and is_right(wanted[index], there):
                tried.add(place)
                if place not in owner or find(owner[place], tried):
                    owner[place] = index
                    return True
        return False

    return sum(find(index, set()) for index in range(len(wanted)))
