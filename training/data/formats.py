"""The published JSON files (LLMGA.md §8), read with exact complaints.

A file is a list of objects, or JSON lines if its name ends in `.jsonl`. Every item is checked when the file is opened,
and so is whether its picture exists: a run of days must not find out in the middle. What is wrong names file, item,
line and remedy; the reader stops there, or skips and counts the item (`on_error`).
"""

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from services.mllm.conversation import Turn
from services.mllm.pictures import Pixels

OnError = Literal["stop", "skip"]
Kind = Literal["text_to_image", "similar_image", "inpainting", "edit", "dialogue"]
IMAGE = "<image>"
_SHOWN = 3  # complaints about skipped items that a report quotes


class DataError(Exception):
    """Training data that cannot be used: what, where, and what to do about it."""


class LeftOut(DataError):
    """The same in a run that goes on without it."""


@dataclass(frozen=True)
class TextToImage:
    """A short caption and the detailed one that it becomes."""

    ori_caption: str
    caption: str


@dataclass(frozen=True)
class SimilarImage:
    """A picture and its detailed caption."""

    image: Path | Pixels
    caption: str


@dataclass(frozen=True)
class Inpainting:
    """A picture of which a part will be hidden, and the caption of the whole."""

    image: Path | Pixels
    caption: str


@dataclass(frozen=True)
class Edit:
    """An instruction and the caption of the edited picture.

    The picture is learned where the instruction has `<image>` in it; otherwise the item is text alone, though it has
    one (LLMGA.md §7.2).
    """

    image: Path | Pixels | None
    instruction: str
    new_caption: str


@dataclass(frozen=True)
class Dialogue:
    """Turns as given: VQA, chat, and the captions that the projector learns from."""

    image: Path | Pixels | None
    turns: tuple[Turn, ...]


Item = TextToImage | SimilarImage | Inpainting | Edit | Dialogue


@dataclass
class Counts:
    """How much of a file was used, and why the rest was not."""

    path: Path
    used: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    shown: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        total = sum(self.skipped.values())
        text = f"{self.path}: {self.used} items"
        if not total:
            return text
        reasons = ", ".join(f"{count} {reason}" for reason, count in self.skipped.most_common())
        return f"{text}, {total} skipped ({reasons}); {'; '.join(self.shown)}"


class JsonItems:
    """The sound items of one file, in its order."""

    def __init__(self, raw: Sequence[Mapping[str, Any]], kind: Kind, images: Path | None, counts: Counts) -> None:
        self._raw, self._kind, self._images, self.counts = raw, kind, images, counts

    def __len__(self) -> int:
        return len(self._raw)

    def item(self, index: int, seed: int) -> Item:
        """Return an item; nothing about it is random, so `seed` plays no part."""
        return _PARSERS[self._kind](self._raw[index], self._images)


def read_items(
    path: Path, kind: Kind, *, images: Path | None = None, on_error: OnError = "stop", at_most: int | None = None
) -> JsonItems:
    """Open a file of one of the published formats.

    images: the folder that the items' `image` is relative to; without it, items must have none.
    at_most: items to use, the first of the file; how much of a mixture it is.

    Raises:
        DataError: the file cannot be read at all; or, with "stop", an item cannot be used.
    """
    document = _Document(path)
    counts, folders = Counts(path), _Folders()
    sound: list[Mapping[str, Any]] = []
    for index, entry in document.entries():
        if len(sound) == at_most:
            break
        try:
            _check(entry, kind, images, folders)
        except _Unusable as problem:
            message = f"{document.place(index)}: {problem}. {problem.remedy}"
            if on_error == "stop":
                raise DataError(f"{message} Or leave such items out with `on_error: skip`.") from None
            counts.skipped[problem.reason] += 1
            if len(counts.shown) < _SHOWN:
                counts.shown.append(message)
            continue
        sound.append(entry)
    counts.used = len(sound)
    if not sound:
        raise DataError(f"{path}: there is no item to learn from ({counts})")
    return JsonItems(sound, kind, images, counts)


class _Unusable(Exception):
    def __init__(self, problem: str, remedy: str, reason: str) -> None:
        super().__init__(problem)
        self.remedy, self.reason = remedy, reason


class _Document:
    """A file's text, with the line of each of its items."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._starts: list[int] | None = None
        try:
            self._text = path.read_text(encoding="utf-8-sig")
        except OSError as error:
            raise DataError(
                f"{path}: it cannot be read ({error.strerror}). Check the recipe's path, or fetch the data set."
            ) from None
        except UnicodeDecodeError as error:
            raise DataError(
                f"{path}: byte {error.start} is not UTF-8. Save the file as UTF-8, or fetch it again."
            ) from None

    def entries(self) -> Iterator[tuple[int, Any]]:
        """Yield number and content of each item; of JSON lines, also those that are broken."""
        if self._path.suffix == ".jsonl":
            for index, line in enumerate(self._text.split("\n")):  # texts may hold Unicode's other ends of lines
                if line.strip():
                    yield index, _parsed(line)
            return
        try:
            content = json.loads(self._text)
        except ValueError as error:
            at = f"line {error.lineno}, column {error.colno}" if isinstance(error, json.JSONDecodeError) else "a number"
            raise DataError(
                f"{self._path}: {at}: it is no JSON ({str(error).partition(':')[0]}). The file was cut off or changed; "
                "correct it there or fetch it again."
            ) from None
        except RecursionError:
            raise DataError(f"{self._path}: it is nested too deeply to be a data set. Fetch it again.") from None
        if not isinstance(content, list):
            raise DataError(f"{self._path}: line 1: it is no list of items. Give the file that LLMGA.md §8 lists.")
        yield from enumerate(content)

    def place(self, index: int) -> str:
        """Return file, item and line for people."""
        if self._path.suffix == ".jsonl":
            return f"{self._path}: line {index + 1}"
        if self._starts is None:
            self._starts = self._find_starts()
        line = self._text.count("\n", 0, self._starts[index]) + 1
        return f"{self._path}: item {index} (line {line})"

    def _find_starts(self) -> list[int]:
        decoder, text = json.JSONDecoder(), self._text
        starts: list[int] = []
        position = text.index("[") + 1
        while True:
            while text[position] in " \t\r\n,":
                position += 1
            if text[position] == "]":
                return starts
            starts.append(position)
            _, position = decoder.raw_decode(text, position)


class _Broken:
    """A line that is no JSON."""


def _parsed(line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return _Broken()


class _Folders:
    """Which files exist, asked of each folder once and not of each file."""

    def __init__(self) -> None:
        self._names: dict[Path, frozenset[str]] = {}

    def have(self, path: Path) -> bool:
        """Return whether there is a file of this name."""
        if path.parent not in self._names:
            try:
                names = frozenset(os.listdir(path.parent))
            except (OSError, ValueError):  # a zero byte in the path
                names = frozenset()
            self._names[path.parent] = names
        return path.name in self._names[path.parent]


def _check(entry: Any, kind: Kind, images: Path | None, folders: _Folders) -> None:
    if isinstance(entry, _Broken):
        raise _Unusable("it is no JSON", "Correct the line.", "lines that are no JSON")
    if not isinstance(entry, dict):
        raise _Unusable(f"it is {type(entry).__name__} and not an object", "Correct the item.", "without its fields")
    image = getattr(_PARSERS[kind](entry, images), "image", None)
    if isinstance(image, Path) and not folders.have(image):
        raise _Unusable(f"there is no picture {image}", "Fetch it, or correct `images`.", "without their picture")


def _text(entry: Mapping[str, Any], name: str) -> str:
    value = entry.get(name)
    if not isinstance(value, str) or not value.strip():
        state = "missing" if value is None else "empty" if value in ("", []) else "not text"
        if isinstance(value, str):
            state = "empty"
        raise _Unusable(f"{name!r} is {state}", "Correct the item.", f"without {name!r}")
    if _has_half_characters(value):
        raise _Unusable(f"{name!r} has half a character", "Correct the item.", "with half a character")
    return value.strip()


def _has_half_characters(text: str) -> bool:
    """Return whether there are surrogates without their other half: JSON lets them pass, tokenizers do not."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def _image(entry: Mapping[str, Any], images: Path | None) -> Path:
    name = _text(entry, "image")
    if images is None:
        raise _Unusable(
            f"it has the picture {name!r}", "Give the folder of its pictures as `images`.", "with an unknown folder"
        )
    return images / name


def _dialogue(entry: Mapping[str, Any], images: Path | None) -> Dialogue:
    found = entry.get("conversations")
    if not isinstance(found, list) or not found:
        raise _Unusable("'conversations' is no list of turns", "Correct the item.", "without 'conversations'")
    said = [_message(message, number) for number, message in enumerate(found)]
    if said and said[0][0] != "human":
        said = said[1:]  # as LLaVA does
    for number, (role, _) in enumerate(said):
        if role != ("human", "gpt")[number % 2]:
            raise _Unusable(
                f"turn {number} is {role!r} where the other should speak", "Correct the item.", "of wrong order"
            )
    pairs = list(zip(said[::2], said[1::2], strict=False))  # a last question without an answer teaches nothing
    if not pairs:
        raise _Unusable("it has no question with an answer", "Correct the item.", "without an answer")
    marked = [number for number, (question, _) in enumerate(pairs) for _ in range(question[1].count(IMAGE))]
    if marked and marked != [0]:
        raise _Unusable(
            f"{IMAGE} stands in question {marked[-1]}, number {len(marked)} of the item",
            "One picture is learned, in the first question.",
            "with pictures elsewhere",
        )
    # The marker moves to the front of its message, wherever it stood; a picture that no text speaks of is left out.
    turns = tuple(Turn(question.replace(IMAGE, "").strip(), answer.strip()) for (_, question), (_, answer) in pairs)
    return Dialogue(_image(entry, images) if marked else None, turns)


def _message(message: object, number: int) -> tuple[str, str]:
    role = message.get("from") if isinstance(message, dict) else None
    value = message.get("value") if isinstance(message, dict) else None
    if not isinstance(role, str) or not isinstance(value, str):
        raise _Unusable(f"turn {number} has no 'from' and 'value'", "Correct the item.", "with broken turns")
    if _has_half_characters(value):
        raise _Unusable(f"turn {number} has half a character", "Correct the item.", "with half a character")
    return role, value


def _edit(entry: Mapping[str, Any], images: Path | None) -> Edit:
    # The original drops the instruction's last character, whatever it is; nothing is lost here (LLMGA.md §7.2).
    instruction, new_caption = _text(entry, "instruction"), _text(entry, "new_caption")
    image = _image(entry, images) if IMAGE in instruction else None
    return Edit(image, instruction.replace(IMAGE, "").strip(), new_caption)


_PARSERS: dict[Kind, Callable[[Mapping[str, Any], Path | None], Item]] = {
    "text_to_image": lambda entry, _: TextToImage(_text(entry, "ori_caption"), _text(entry, "caption")),
    "similar_image": lambda entry, images: SimilarImage(_image(entry, images), _text(entry, "caption")),
    "inpainting": lambda entry, images: Inpainting(_image(entry, images), _text(entry, "caption")),
    "edit": _edit,
    "dialogue": _dialogue,
}
