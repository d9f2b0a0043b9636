"""How people speak of objects and backgrounds, in English and Chinese: the words of requests, edits and questions."""

from collections.abc import Mapping, Sequence
from typing import Literal

from training.world.objects import Background, Fill, Object, Pattern, Shape, Size

Language = Literal["en", "zh"]
LANGUAGES: tuple[Language, ...] = ("en", "zh")

COLORS_ZH: Mapping[str, str] = {
    "red": "红色",
    "orange": "橙色",
    "yellow": "黄色",
    "green": "绿色",
    "blue": "蓝色",
    "purple": "紫色",
    "pink": "粉色",
    "brown": "棕色",
    "cyan": "青色",
    "white": "白色",
    "gray": "灰色",
    "black": "黑色",
    "navy": "深蓝色",
}
SHAPES_ZH: Mapping[Shape, str] = {
    Shape.CIRCLE: "圆形",
    Shape.SQUARE: "方形",
    Shape.TRIANGLE: "三角形",
    Shape.DIAMOND: "菱形",
    Shape.STAR: "星星",
    Shape.HEART: "爱心",
    Shape.CROSS: "十字",
    Shape.CRESCENT: "月牙",
    Shape.BAR: "长条",
    Shape.DOME: "半圆",
}
SIZES_ZH: Mapping[Size, str] = {Size.SMALL: "小", Size.MEDIUM: "中等", Size.LARGE: "大"}
FILLS_ZH: Mapping[Fill, str] = {Fill.FILLED: "实心", Fill.OUTLINED: "空心"}
PATTERNS_ZH: Mapping[Pattern, str] = {
    Pattern.PLAIN: "纯色",
    Pattern.GRADIENT: "渐变",
    Pattern.STRIPED: "条纹",
    Pattern.CHECKED: "格子",
}
PLACES_ZH: Mapping[str, str] = {
    "top left": "左上角",
    "top center": "上方",
    "top right": "右上角",
    "middle left": "左边",
    "middle center": "中间",
    "middle right": "右边",
    "bottom left": "左下角",
    "bottom center": "下方",
    "bottom right": "右下角",
}
# The first way is the caption's own; the others are what people say.
PLACES_EN: Mapping[str, Sequence[str]] = {
    "top left": ("in the top left", "at the top left"),
    "top center": ("in the top center", "at the top"),
    "top right": ("in the top right", "at the top right"),
    "middle left": ("in the middle left", "on the left"),
    "middle center": ("in the middle center", "in the middle", "in the center"),
    "middle right": ("in the middle right", "on the right"),
    "bottom left": ("in the bottom left", "at the bottom left"),
    "bottom center": ("in the bottom center", "at the bottom"),
    "bottom right": ("in the bottom right", "at the bottom right"),
}
NUMBERS_EN = ("no", "one", "two", "three", "four", "five")
NUMBERS_ZH = ("零", "一", "两", "三", "四", "五")


def article(words: str) -> str:
    """Return the words behind "a" or "an"."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def plural(shape: Shape) -> str:
    """Return the English plural of a shape."""
    return "crosses" if shape is Shape.CROSS else f"{shape}s"


def phrase_en(item: Object, *, color: bool = True, size: bool = False, fill: bool = False) -> str:
    """Return an object without article, "large outlined red circle", with the attributes asked for."""
    return " ".join([*[item.size] * size, *[item.fill] * fill, *[item.color] * color, item.shape])


def phrase_zh(item: Object, *, color: bool = True, size: bool = False, fill: bool = False) -> str:
    """Return an object in Chinese, "大的空心红色圆形", with the attributes asked for."""
    words = [SIZES_ZH[item.size] + "的"] * size + [FILLS_ZH[item.fill]] * fill + [COLORS_ZH[item.color]] * color
    return "".join([*words, SHAPES_ZH[item.shape]])


def background_en(background: Background, *, pattern: bool) -> str:
    """Return "striped blue" or "blue"."""
    return f"{background.pattern} {background.color}" if pattern else background.color


def background_zh(background: Background, *, pattern: bool) -> str:
    """Return "条纹蓝色" or "蓝色"."""
    return (PATTERNS_ZH[background.pattern] if pattern else "") + COLORS_ZH[background.color]
