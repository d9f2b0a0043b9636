"""Words that mean a picture made before: "the second one", "picture 3", "第二张".

Total and small on purpose: it knows ordinals, in English and Chinese, and nothing else. Where it finds none, or one
that no picture answers to, the latest picture is meant; `refers_to` says for certain.
"""

import re

_ENGLISH = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth")
_CHINESE = "一二三四五六七八九"
_LATEST, _BEFORE_LATEST = -1, -2
_FROM_THE_END = dict.fromkeys(("last", "latest", "newest", "previous"), _LATEST) | dict.fromkeys(
    ("second to last", "second-to-last", "last but one", "penultimate"), _BEFORE_LATEST
)
_NAMED = {"original": 1} | {word: number for number, word in enumerate(_ENGLISH, 1)} | _FROM_THE_END

_PICTURE = r"(?:one|picture|image|photo|photograph|drawing|painting|version|variant|result)"
# "the", since "add a second picture to the wall" means none of ours.
_ORDINAL_EN = re.compile(
    rf"\b(?:the|my|your|that) (?:(?P<word>{'|'.join(sorted(_NAMED, key=len, reverse=True))})"
    rf"|(?P<digits>[1-9][0-9]?)(?:st|nd|rd|th)) {_PICTURE}\b",
    re.IGNORECASE,
)
_NUMBERED_EN = re.compile(
    rf"\b{_PICTURE} (?:number |no\. ?|nr\. ?|# ?)?(?P<digits>[1-9][0-9]?)\b(?! *[x×%])", re.IGNORECASE
)
_BEFORE_EN = re.compile(r"\bthe one before(?: that| this| it| the last(?: one)?)?\b", re.IGNORECASE)

_COUNTED_ZH = r"\s*(?:张|幅|个图|个版本)"
_ORDINAL_ZH = re.compile(
    rf"(?P<end>倒数)?第\s*(?P<number>[1-9][0-9]?|[{_CHINESE}]?十[{_CHINESE}]?|[{_CHINESE}两]){_COUNTED_ZH}"
)
_LATEST_ZH = re.compile(rf"(?:最后|最新|上|前)(?:的)?(?:那)?一?{_COUNTED_ZH}")
_BEFORE_ZH = re.compile(rf"(?:上上|前前)(?:那)?一?{_COUNTED_ZH}|再(?:上|前)(?:面)?(?:那)?一{_COUNTED_ZH}")


def ordinal_in(text: str) -> int | None:
    """Return which picture a text means: 1 is the first, -1 the latest, None when it names none."""
    found = [(match.start(), number) for match, number in _ordinals(text)]
    return min(found)[1] if found else None


def place_of(ordinal: int, count: int) -> int | None:
    """Return the place, from 0, of that picture among so many; None when there are fewer."""
    place = ordinal - 1 if ordinal > 0 else count + ordinal
    return place if 0 <= place < count else None


def _ordinals(text: str) -> list[tuple[re.Match[str], int]]:
    found: list[tuple[re.Match[str], int]] = []
    for match in _ORDINAL_EN.finditer(text):
        found.append((match, _NAMED[match["word"].lower()] if match["word"] else int(match["digits"])))
    found += [(match, int(match["digits"])) for match in _NUMBERED_EN.finditer(text)]
    found += [(match, _BEFORE_LATEST) for match in _BEFORE_EN.finditer(text)]
    for match in _ORDINAL_ZH.finditer(text):
        number = _number(match["number"])
        found.append((match, -number if match["end"] else number))
    before = [(match, _BEFORE_LATEST) for match in _BEFORE_ZH.finditer(text)]
    if not before:  # 上上一张 holds 上一张
        found += [(match, _LATEST) for match in _LATEST_ZH.finditer(text)]
    return found + before


def _number(text: str) -> int:
    """Return a number below a hundred as it is written in digits or in Chinese."""
    if text.isascii():
        return int(text)
    tens, ten, ones = text.replace("两", "二").rpartition("十")
    number = 10 * (_CHINESE.index(tens) + 1 if tens else 1) if ten else 0
    return number + (_CHINESE.index(ones) + 1 if ones else 0)
