from dataclasses import replace

import pytest

from training.evaluation.judge import Reading, Seen
from training.evaluation.scores import (
    Score,
    matched,
    score_caption,
    score_picture,
    score_prompt,
    score_request,
    total,
)
from training.world import Scene, caption_of
from training.world.objects import Background, Fill, Object, Shape, Size
from training.world.requests import Request, Wanted

STAR = Object(Shape.STAR, "yellow", Size.SMALL, Fill.FILLED, "top left")
HEART = Object(Shape.HEART, "red", Size.LARGE, Fill.FILLED, "bottom center")
NAVY = Background("navy")
SCENE = Scene(NAVY, (STAR, HEART))


def reading(*objects: Object, background: Background = NAVY) -> Reading:
    return Reading(background, tuple(map(Seen.of, objects)))


def request(*wanted: Wanted, background: str | None = None) -> Request:
    return Request("", "", "en", wanted, background, is_concept=False)


def test_right_picture_has_full_marks() -> None:
    score = score_picture(SCENE, reading(STAR, HEART))
    assert score == Score(wanted=2, placed=2, shaped=2, exact=2, extra=0, pictures=1, background=1, whole=1)


@pytest.mark.parametrize(
    ("objects", "placed", "shaped", "exact", "extra"),
    [
        ([], 0, 0, 0, 0),
        ([STAR], 1, 1, 1, 0),
        ([replace(STAR, color="white"), HEART], 1, 1, 1, 0),
        ([replace(STAR, shape=Shape.CROSS), HEART], 2, 1, 1, 0),
        ([replace(STAR, size=Size.LARGE), HEART], 2, 2, 1, 0),
        ([replace(STAR, place="top right"), HEART], 1, 1, 1, 1),
        ([STAR, HEART, replace(HEART, place="bottom right")], 2, 2, 2, 1),
    ],
    ids=["empty", "missing", "color", "shape", "size", "place", "one too many"],
)
def test_marks_are_lost_for_what_is_wrong(
    objects: list[Object], placed: int, shaped: int, exact: int, extra: int
) -> None:
    score = score_picture(SCENE, reading(*objects))
    assert (score.placed, score.shaped, score.exact, score.extra) == (placed, shaped, exact, extra)
    assert score.whole == 0


def test_only_the_objects_meant_are_scored() -> None:
    score = score_picture(SCENE, reading(HEART), only=lambda item: item is HEART)
    assert (score.wanted, score.placed) == (1, 1)


def test_caption_is_scored_by_its_words() -> None:
    assert score_caption(SCENE, caption_of(SCENE)).whole == 1
    wrong = score_caption(SCENE, caption_of(SCENE).replace("yellow star", "green star"))
    assert (wrong.placed, wrong.exact, wrong.background, wrong.whole) == (1, 1, 1, 0)
    repeated = caption_of(SCENE) + " " + caption_of(SCENE).split(". ", 1)[1]
    assert score_caption(SCENE, repeated).whole == 0
    assert score_caption(SCENE, "A nice picture.") == Score(wanted=2, pictures=1)


def test_request_pins_only_what_it_names() -> None:
    anywhere = Wanted(Shape.STAR, None, None)
    assert score_request(request(anywhere), reading(HEART, STAR)).whole == 1
    placed = Wanted(Shape.STAR, frozenset({"yellow"}), "top right")
    assert score_request(request(placed), reading(STAR)).shaped == 0
    shapeless = score_request(request(Wanted(Shape.CROSS, frozenset({"yellow"}), "top left")), reading(STAR))
    assert (shapeless.placed, shapeless.shaped) == (1, 0)


def test_two_wanted_stars_are_not_one_star() -> None:
    star = Wanted(Shape.STAR, None, None)
    assert score_request(request(star, star), reading(STAR)).shaped == 1
    other = replace(STAR, place="top right", color="white")
    assert score_request(request(star, star), reading(STAR, other)).shaped == 2


def test_pairing_finds_the_best_assignment() -> None:
    white = replace(STAR, place="top right", color="white")
    any_star, yellow_star = Wanted(Shape.STAR, None, None), Wanted(Shape.STAR, frozenset({"yellow"}), None)
    assert score_request(request(any_star, yellow_star), reading(STAR, white)).shaped == 2
    assert matched([1, 2], [], lambda wanted, seen: True) == 0


def test_background_counts_where_the_request_speaks_of_it() -> None:
    wanted = Wanted(Shape.STAR, None, None)
    assert score_request(request(wanted, background="navy"), reading(STAR)).whole == 1
    assert score_request(request(wanted, background="red"), reading(STAR)).whole == 0


def test_prompt_is_scored_like_the_picture_it_asks_for() -> None:
    asked = request(Wanted(Shape.STAR, frozenset({"yellow"}), None), background="navy")
    assert score_prompt(asked, caption_of(SCENE)) == score_request(asked, reading(STAR, HEART))
    assert score_prompt(asked, "A star.").whole == 0


def test_scores_add_up_to_shares() -> None:
    score = total([score_picture(SCENE, reading(STAR, HEART)), score_picture(SCENE, reading(STAR))])
    assert score.shares() == {
        "color_and_place": 0.75,
        "also_shape": 0.75,
        "also_size_and_fill": 0.75,
        "extra_objects_per_picture": 0.0,
        "background": 1.0,
        "whole": 0.5,
    }
    assert total([]).shares()["whole"] == 0
