"""Words for pictures made before."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.sessions.references import ordinal_in, place_of


@pytest.mark.parametrize(
    ("text", "ordinal"),
    [
        ("make the second one darker", 2),
        ("take the 3rd picture and add a boat", 3),
        ("The First Image, but at night", 1),
        ("like picture 4 with snow", 4),
        ("use image #12", 12),
        ("photo number 2 in blue", 2),
        ("go back to the original picture", 1),
        ("make the last one brighter", -1),
        ("the previous picture with a red roof", -1),
        ("the second to last one in green", -2),
        ("no, the one before that", -2),
        ("the first one, not the second one", 1),
        ("把第二张的天空变暗", 2),
        ("第3张图片加一条船", 3),
        ("第十二幅", 12),
        ("第二十张", 20),
        ("第两张", 2),
        ("把最后一张变亮", -1),
        ("上一张加上雪", -1),
        ("上上一张加上雪", -2),
        ("倒数第二张", -2),
    ],
)
def test_ordinals_are_understood(text: str, ordinal: int) -> None:
    assert ordinal_in(text) == ordinal


@pytest.mark.parametrize(
    "text",
    [
        "make the sky darker",
        "paint the second house red",
        "hang a second picture on the wall",
        "an image 512x512 of a cat",
        "a picture 50% larger",
        "in the last light of the day",
        "画第二座房子",
        "画一张图",
        "",
    ],
)
def test_other_words_name_no_picture(text: str) -> None:
    assert ordinal_in(text) is None


@given(
    st.text(max_size=200)
    | st.lists(st.sampled_from(["the", "second", "one", "第", "十", "张", "上", "倒数"])).map("".join)
)
def test_any_text_gives_an_ordinal_or_none(text: str) -> None:
    ordinal = ordinal_in(text)
    assert ordinal is None or (ordinal != 0 and -100 < ordinal < 100)


@given(st.integers(-99, 99).filter(bool), st.integers(0, 50))
def test_a_place_is_one_of_the_pictures_or_none(ordinal: int, count: int) -> None:
    place = place_of(ordinal, count)
    assert (place is not None) == (abs(ordinal) <= count)
    assert place is None or 0 <= place < count
