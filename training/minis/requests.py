"""Requests and the generation prompts that answer them: scenes of things and shapes, made from templates.

The random mini checkpoint is taught on these, so that its answers show the real protocol. English and Chinese
requests both get English prompts: the text encoders of SD1.5 and SDXL are English (LLMGA.md §3.1).
"""

import random
from dataclasses import dataclass

COLORS = {
    "red": "红色",
    "orange": "橙色",
    "yellow": "黄色",
    "green": "绿色",
    "blue": "蓝色",
    "purple": "紫色",
    "pink": "粉色",
    "white": "白色",
    "black": "黑色",
    "brown": "棕色",
}
SHAPES = {
    "circle": "圆形",
    "square": "方形",
    "triangle": "三角形",
    "star": "星星",
    "heart": "爱心",
    "diamond": "菱形",
    "ring": "圆环",
    "cross": "十字",
}
THINGS = {
    "snowman": (
        "雪人",
        "three white circles on top of each other, with an orange carrot nose and a black hat",
    ),
    "house": ("房子", "a square with a brown triangle as its roof, a yellow window and a small door"),
    "tree": ("树", "a tall brown trunk under a round green crown"),
    "traffic light": ("红绿灯", "a black box with a red, a yellow and a green circle, one below the other"),
    "flower": ("花", "five pink petals around a yellow circle, on a thin green stem"),
    "fish": ("鱼", "an orange oval body with a triangle as its tail and a round black eye"),
    "boat": ("小船", "a brown hull under one white triangular sail"),
    "car": ("汽车", "a red body with two blue windows on two black wheels"),
    "cat": ("猫", "a round grey head with two pointed ears, green eyes and long whiskers"),
    "sunflower": ("向日葵", "a brown circle in a crown of yellow petals, on a long green stem"),
    "mountain": ("山", "a wide grey triangle with a white top of snow"),
    "cake": ("蛋糕", "two pink layers with white cream and one burning candle"),
}
TIMES = {
    "at night": ("夜晚的", "a dark blue night sky with a pale moon and small white stars"),
    "in the morning": ("早晨的", "a soft pink morning sky with a low yellow sun"),
    "in the rain": ("雨中的", "a grey sky with thin blue lines of rain"),
    "in winter": ("冬天的", "a white field of snow under a light grey sky"),
    "at sunset": ("日落时的", "an orange evening sky with long soft shadows"),
    "": ("", "a plain light background"),
}
PLACES = ("in the middle", "on the left", "on the right", "at the top", "at the bottom")
SIZES = ("small", "medium", "large")
ASKS = (
    "draw {}",
    "paint {}",
    "generate {}",
    "show me {}",
    "a picture of {}",
    "{}",
    "please draw {}",
    "make {}",
)
ASKS_ZH = ("画{}", "请画{}", "生成一张{}的图片", "给我看{}", "{}")
ENDINGS = (
    "The colors are clear, the edges are clean and the light is soft.",
    "Flat colors, simple forms and a calm, balanced composition.",
    "Drawn in a simple style with bright colors and sharp edges.",
)


@dataclass(frozen=True)
class Pair:
    """One request and the generation prompt that answers it."""

    request: str
    prompt: str


def _article(word: str) -> str:
    return f"an {word}" if word[0] in "aeiou" else f"a {word}"


def draw(rng: random.Random) -> Pair:
    """Return one pair, drawn with this generator."""
    time = rng.choice(list(TIMES))
    time_zh, background = TIMES[time]
    place, size = rng.choice(PLACES), rng.choice(SIZES)
    if rng.random() < 0.5:
        thing = rng.choice(list(THINGS))
        thing_zh, looks = THINGS[thing]
        wanted, wanted_zh = _article(thing), f"一个{time_zh}{thing_zh}"
        subject = f"A {size} {thing} {place} of the picture: {looks}."
    else:
        color, shape = rng.choice(list(COLORS)), rng.choice(list(SHAPES))
        wanted, wanted_zh = _article(f"{color} {shape}"), f"一个{time_zh}{COLORS[color]}{SHAPES[shape]}"
        subject = f"A {size} {color} {shape} {place} of the picture, filled with {color} color."
    prompt = f"{subject} The background is {background}. {rng.choice(ENDINGS)}"
    if rng.random() < 0.25:
        return Pair(rng.choice(ASKS_ZH).format(wanted_zh), prompt)
    request = rng.choice(ASKS).format(f"{wanted} {time}".strip())
    if rng.random() < 0.3:
        request += rng.choice((".", "!"))
    return Pair(request, prompt)


def text() -> list[str]:
    """Return lines that hold every word above, to train a tokenizer on."""
    rng = random.Random(0)
    pairs = [draw(rng) for _ in range(2_000)]
    return [pair.request for pair in pairs] + [f"<gen_image> {pair.prompt} </gen_image>" for pair in pairs]
