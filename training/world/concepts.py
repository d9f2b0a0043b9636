"""Things that have a name: a snowman, a traffic light, the flag of Japan.

A concept is an arrangement of the world's own objects in its own cells, so its pictures have captions like any other
and the judge reads them. Each part has the colors it may have; which one is free unless a request pins it. A setting
("at night") gives the background, and each concept is drawn in those settings in which all its parts can be seen.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache

from training.world.objects import Background, Fill, Object, Pattern, Shape, Size, stands_out

Composition = tuple[str, str, str]  # color, shape, place


@dataclass(frozen=True, slots=True)
class Part:
    """One object of a concept; `names` are its own (English, Chinese), where an edit may speak of it."""

    shape: Shape
    colors: tuple[str, ...]
    size: Size
    fill: Fill
    place: str
    names: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Concept:
    """An arrangement with names; `background` is there where the concept has its own (a flag's white)."""

    name: str
    chinese: str
    parts: tuple[Part, ...]
    background: Background | None = None

    @property
    def is_countable(self) -> bool:
        """Whether there can be one of it: "a house", but not "a cherries" or "a the flag of japan"."""
        return not self.name.startswith("the ") and self.name not in _UNCOUNTED | _DEFINITE

    @property
    def with_article(self) -> str:
        """The name as people write it in a sentence."""
        if self.name in _DEFINITE:
            return f"the {self.name}"
        if not self.is_countable:
            return self.name
        return f"{'an' if self.name[0] in _VOWELS and self.name != 'ufo' else 'a'} {self.name}"


@dataclass(frozen=True, slots=True)
class Setting:
    """Where or when a concept is shown: what people write behind it, before it in Chinese, and the background.

    extra: what else is to be seen where its cell is free.
    """

    name: str
    chinese: str
    background: Background
    extra: Object | None = None


_MOON = Object(Shape.CRESCENT, "yellow", Size.MEDIUM, Fill.FILLED, "top right")
_SUN = Object(Shape.CIRCLE, "yellow", Size.MEDIUM, Fill.FILLED, "top left")
_SNOWFLAKE = Object(Shape.STAR, "white", Size.SMALL, Fill.FILLED, "top left")


SETTINGS: Mapping[str, Setting] = {
    setting.name: setting
    for setting in (
        Setting("at night", "夜晚的", Background("navy"), _MOON),
        Setting("at sunset", "日落时的", Background("orange", Pattern.GRADIENT)),
        Setting("by day", "白天的", Background("cyan"), _SUN),
        Setting("in winter", "冬天的", Background("gray", Pattern.GRADIENT), _SNOWFLAKE),
        Setting("in the rain", "雨中的", Background("gray", Pattern.STRIPED)),
        Setting("in a field", "草地上的", Background("green")),
        Setting("in the desert", "沙漠里的", Background("yellow", Pattern.GRADIENT)),
        Setting("under water", "水下的", Background("blue", Pattern.GRADIENT)),
        Setting("at a party", "派对上的", Background("pink", Pattern.CHECKED)),
        Setting("in a dream", "梦里的", Background("purple", Pattern.GRADIENT)),
        Setting("in the dark", "黑暗中的", Background("black")),
        Setting("on paper", "纸上的", Background("white")),
    )
}

_CELLS = {
    "tl": "top left", "tc": "top center", "tr": "top right",
    "ml": "middle left", "mc": "middle center", "mr": "middle right",
    "bl": "bottom left", "bc": "bottom center", "br": "bottom right",
}  # fmt: skip
_SIZES = {"s": Size.SMALL, "m": Size.MEDIUM, "l": Size.LARGE}
_UNCOUNTED = frozenset({"cherries", "balloons", "mountains", "sunrise", "tic tac toe"})
_DEFINITE = frozenset({"night sky", "solar system", "sun"})
_VOWELS = frozenset("aeiou")

# One line per concept: name | Chinese | parts. A part is: place(s) size colors shape [name Chinese-name]; size is one
# letter, in upper case for an outline; the first color is the usual one. An indented line goes on with the last.
_LINES = """
snowman | 雪人 | tc s white circle head 头, mc m white circle, bc l white circle belly 肚子
traffic light | 红绿灯 | tc l red circle, mc l yellow circle, bc l green circle
house | 房子 | mc l red/brown/purple/black triangle roof 屋顶, bc l yellow/white/orange/blue/pink square wall 墙
castle | 城堡 | tl+tr m red/blue/purple triangle, ml+mr l gray/white/yellow square, bc l brown/black dome gate 大门
church | 教堂 | tc s yellow/white/black cross, mc l red/brown/purple triangle roof 屋顶,
  bc l white/gray/orange square wall 墙
hospital | 医院 | tc m red cross, mc l white/cyan square, bl+bc+br m blue/gray square
lighthouse | 灯塔 | tc m yellow dome light 灯, mc l white/gray square, bc l red/blue square base 底座
windmill | 风车 | tc l white/gray/yellow cross sail 叶片, mc m red/brown triangle roof 屋顶,
  bc l brown/orange/purple square
bridge | 桥 | ml+mc+mr l gray/brown/red dome, bl+br m blue/cyan bar
igloo | 冰屋 | mc L white circle, bc l white/cyan dome
tent | 帐篷 | tr s yellow crescent moon 月亮, bc l orange/green/red/blue triangle
tree | 树 | mc l green/orange/red circle crown 树冠, bc s brown square trunk 树干
pine tree | 松树 | tc m green triangle top 树顶, mc l green triangle, bc s brown square trunk 树干
palm tree | 棕榈树 | tc l green star leaves 叶子, mc s brown square, bc m brown bar
christmas tree | 圣诞树 | tc m yellow/red star star 星星, mc m green triangle, bc l green triangle
flower | 花 | mc l pink/red/purple/yellow/white heart blossom 花朵, bc m green cross stem 茎
sunflower | 向日葵 | tc l yellow star blossom 花朵, mc s green square, bc m green heart leaf 叶子
mushroom | 蘑菇 | mc l red/brown/orange/purple dome cap 伞盖, bc m white/yellow/gray square stem 茎
cactus | 仙人掌 | mc l green cross, bc m orange/red/brown dome pot 花盆
apple | 苹果 | tc s green diamond leaf 叶子, mc l red/green/yellow circle
cherries | 樱桃 | tc m green heart leaf 叶子, bl+br l red/purple circle
strawberry | 草莓 | tc m green star leaf 叶子, mc l red/pink heart
carrot | 胡萝卜 | tc m green star leaf 叶子, mc l orange/purple diamond
pineapple | 菠萝 | tc l green star crown 冠, mc l yellow/orange diamond, bc s yellow/orange bar
pumpkin | 南瓜 | tc s green square stem 茎, mc l orange/white circle
watermelon | 西瓜 | mc l red dome flesh 果肉, bc l green bar rind 瓜皮
burger | 汉堡 | tc l orange dome bun 面包, mc l brown bar patty 肉饼, bc l orange bar
cake | 蛋糕 | tc s red/yellow/blue diamond candle 蜡烛, mc l pink/white/yellow bar cream 奶油,
  bc l brown/pink/orange bar
ice cream | 冰淇淋 | mc l pink/white/brown/cyan/green circle scoop 冰球, bc l orange/brown diamond cone 蛋筒
lollipop | 棒棒糖 | mc l pink/red/purple/green/orange circle candy 糖, bc s white/brown square stick 棍
candle | 蜡烛 | tc m orange/yellow diamond flame 火焰, mc m white/red/purple/pink square, bc m brown/gray bar
lamp | 台灯 | tc l yellow/white/green dome shade 灯罩, mc s gray/black/brown square,
  bc m gray/black/brown bar base 底座
table | 桌子 | mc l brown/white/gray bar top 桌面, bl+br s brown/white/black square
gift | 礼物 | tc m yellow/pink/white heart bow 蝴蝶结, mc l red/blue/purple/green square box 盒子
umbrella | 雨伞 | tc l red/blue/yellow/purple/pink dome, mc s gray/brown/black square,
  bc m gray/brown/black crescent handle 伞柄
kite | 风筝 | tr l red/yellow/green/purple/orange diamond, mc s blue/yellow/pink cross,
  bl s blue/yellow/pink cross tail 尾巴
balloons | 气球 | tl l red circle, tc l yellow circle, tr l blue circle, mc s black/gray square
crown | 王冠 | ml+mr m yellow/orange triangle, mc l yellow/orange triangle, bc l yellow/orange/red bar
love letter | 情书 | tc m red/pink heart heart 爱心, mc l white/pink/yellow bar
car | 汽车 | mc l red/blue/green/yellow/purple/white dome body 车身, bl+br m black/gray circle
bus | 公共汽车 | ml+mc+mr l yellow/red/blue/green square, bl+br m black/gray circle
train | 火车 | ml+mc l red/blue/green square, mr l black/gray/purple dome engine 车头,
  bl+br m black/gray/brown circle
truck | 卡车 | ml l orange/blue/white/green square, mr m red/yellow/purple square cab 驾驶室,
  bl+br m black/gray circle
boat | 小船 | mc l white/yellow/red triangle sail 帆, bc l brown/black/red bar hull 船身
rocket | 火箭 | tc l red/blue/purple triangle nose 箭头, mc l white/gray square, bc m orange/yellow star fire 火焰
airplane | 飞机 | tl+br m white bar, mc l gray/red/blue cross
helicopter | 直升机 | tc l black/gray bar rotor 旋翼, mc l red/blue/green/yellow circle cabin 机舱,
  mr m red/blue/green/yellow cross tail 尾桨
ufo | 飞碟 | tc m cyan/green dome, mc l gray/purple bar body 机身, bl+bc+br s yellow/orange circle
robot | 机器人 | tc m gray/blue/orange square head 头, ml+mr s black/gray/red square,
  mc l gray/blue/purple/orange square body 身体
smiley | 笑脸 | tl+tr m black/blue circle, mc s orange/pink triangle nose 鼻子, bc l red/pink bar mouth 嘴
cat | 猫 | tl+tr m black/orange/gray/white triangle, mc l black/orange/gray/white circle face 脸
rabbit | 兔子 | tl+tr l white/pink/gray diamond, mc l white/pink/gray circle face 脸
bear | 熊 | tl+tr m brown/black/white circle, mc l brown/black/white circle face 脸
pig | 猪 | tl+tr s pink triangle, mc l pink circle face 脸, bc s red bar
owl | 猫头鹰 | tl+tr L yellow/orange circle, mc s orange/red diamond beak 嘴, bc l brown/gray dome
frog | 青蛙 | tl+tr m green circle, mc l green dome, bc m red/pink bar mouth 嘴
penguin | 企鹅 | tc m black circle head 头, mc l white circle belly 肚子, bl+br s orange/yellow triangle
fish | 鱼 | tl s cyan/white circle bubble 气泡, mc l orange/red/purple/yellow circle body 身体,
  mr m orange/red/purple/yellow triangle tail 尾巴
butterfly | 蝴蝶 | ml+mr l pink/purple/blue/orange/yellow heart, mc s black/brown diamond body 身体
bee | 蜜蜂 | tl+tr m white/cyan heart, mc l yellow circle body 身体, mr m black bar
bird | 小鸟 | mc l blue/red/yellow/purple dome body 身体, mr s orange/yellow triangle beak 嘴,
  bc m brown bar branch 树枝
ladybug | 瓢虫 | mc l red/orange dome shell 壳, mr m black circle head 头
turtle | 乌龟 | mc l green/brown dome shell 壳, mr m green/yellow circle head 头, bl+bc+br s green/yellow square
snail | 蜗牛 | mc l brown/orange/purple circle shell 壳, bc l yellow/orange/gray bar body 身体,
  mr s yellow/orange/gray diamond
ghost | 幽灵 | mc l white/gray dome head 头, bc l white/gray square
sun | 太阳 | tc+ml+mr+bc m orange/yellow diamond, mc l yellow/orange circle
night sky | 夜空 | tl+tr+bl+br s white/yellow star, mc l yellow/white crescent moon 月亮 | navy
shooting star | 流星 | tr l yellow/white star, mc m white/cyan bar, bl s white/cyan bar | navy
sunrise | 日出 | mc l yellow/orange/red dome sun 太阳, bl+bc+br l blue/green bar
mountains | 群山 | tr m yellow/orange circle sun 太阳, bl+bc+br l gray/brown/green triangle
volcano | 火山 | mc l red/orange star fire 火焰, bc l brown/black/gray triangle
island | 小岛 | mc l green star palm 棕榈, bc l yellow/brown dome
campfire | 篝火 | mc l orange/red/yellow triangle fire 火焰, bl+bc+br m brown/black bar
solar system | 太阳系 | ml l yellow circle sun 太阳, mc s blue circle earth 地球,
  mr m orange/red circle planet 行星 | black
tic tac toe | 井字棋 | tl+mc+br m blue/black cross, tr+bl M red/green circle
dice with one dot | 一点的骰子 | mc m black/red/blue circle | white
dice with two dots | 两点的骰子 | tl+br m black/red/blue circle | white
dice with three dots | 三点的骰子 | tl+mc+br m black/red/blue circle | white
dice with four dots | 四点的骰子 | tl+tr+bl+br m black/red/blue circle | white
dice with five dots | 五点的骰子 | tl+tr+mc+bl+br m black/red/blue circle | white
the flag of france | 法国国旗 | ml l blue square, mc l white square, mr l red square
the flag of italy | 意大利国旗 | ml l green square, mc l white square, mr l red square
the flag of ireland | 爱尔兰国旗 | ml l green square, mc l white square, mr l orange square
the flag of belgium | 比利时国旗 | ml l black square, mc l yellow square, mr l red square
the flag of romania | 罗马尼亚国旗 | ml l blue square, mc l yellow square, mr l red square
the flag of germany | 德国国旗 | tc l black bar, mc l red bar, bc l yellow bar
the flag of russia | 俄罗斯国旗 | tc l white bar, mc l blue bar, bc l red bar
the flag of hungary | 匈牙利国旗 | tc l red bar, mc l white bar, bc l green bar
the flag of austria | 奥地利国旗 | tc l red bar, mc l white bar, bc l red bar
the flag of estonia | 爱沙尼亚国旗 | tc l blue bar, mc l black bar, bc l white bar
the flag of japan | 日本国旗 | mc l red circle sun 太阳 | white
the flag of switzerland | 瑞士国旗 | mc l white cross cross 十字 | red
"""


def _read(line: str) -> Concept:
    name, chinese, parts, *background = (piece.strip() for piece in line.split("|"))
    return Concept(
        name,
        chinese,
        tuple(sorted((part for text in parts.split(",") for part in _parts(text)), key=_reading_order)),
        Background(background[0]) if background else None,
    )


def _parts(text: str) -> Iterator[Part]:
    places, size, colors, shape, *names = text.split()
    for place in places.split("+"):
        fill = Fill.OUTLINED if size.isupper() else Fill.FILLED
        named = (names[0], names[1]) if names else None
        yield Part(Shape(shape), tuple(colors.split("/")), _SIZES[size.lower()], fill, _CELLS[place], named)


def _reading_order(part: Part) -> int:
    return list(_CELLS.values()).index(part.place)


CONCEPTS: Mapping[str, Concept] = {
    concept.name: concept for concept in map(_read, _LINES.replace("\n  ", " ").strip().splitlines())
}

# What a concept looks like in its usual colors belongs to both splits: no snowman without a white circle.
COMPOSITIONS: frozenset[Composition] = frozenset(
    (part.colors[0], str(part.shape), part.place) for concept in CONCEPTS.values() for part in concept.parts
) | {(extra.color, str(extra.shape), extra.place) for setting in SETTINGS.values() if (extra := setting.extra)}


@cache
def groups_of(concept: Concept) -> tuple[tuple[int, ...], ...]:
    """Return the indices of parts that share their color: those with the same choice (wheels; ears and face)."""
    groups: dict[tuple[str, ...], list[int]] = {}
    for index, part in enumerate(concept.parts):
        groups.setdefault(part.colors, []).append(index)
    return tuple(map(tuple, groups.values()))


@cache
def visible_colors(part: Part, background: Background) -> tuple[str, ...]:
    """Return those of a part's colors that can be seen on a background."""
    return tuple(color for color in part.colors if stands_out(color, background))


@cache
def fits(concept: Concept, background: Background) -> bool:
    """Return whether every part of a concept can be seen on a background, and the concept may have it."""
    if concept.background is not None and concept.background != background:
        return False
    return all(visible_colors(part, background) for part in concept.parts)


@cache
def settings_of(concept: Concept) -> tuple[str, ...]:
    """Return the names of the settings in which a concept can be drawn; none where it has its own background."""
    if concept.background is not None:
        return ()
    return tuple(name for name, setting in SETTINGS.items() if fits(concept, setting.background))
