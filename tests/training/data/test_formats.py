import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from services.mllm.conversation import Turn
from training.data.formats import DataError, Dialogue, Edit, Inpainting, Kind, SimilarImage, TextToImage, read_items


def write(folder: Path, content: object, name: str = "train.json") -> Path:
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content, indent=1), encoding="utf-8")
    return path


@pytest.fixture
def images(tmp_path: Path) -> Path:
    (tmp_path / "coco").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "coco" / "a.png")
    return tmp_path


def said(*values: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[number % 2], "value": value} for number, value in enumerate(values)]


def test_each_published_format_is_read(images: Path) -> None:
    picture = images / "coco" / "a.png"
    cases: list[tuple[Kind, dict[str, Any], object]] = [
        (
            "text_to_image",
            {"ori_caption": "a cat", "caption": "A cat. ", "image": "x.png"},
            TextToImage("a cat", "A cat."),
        ),
        ("similar_image", {"image": "coco/a.png", "caption": "A cat."}, SimilarImage(picture, "A cat.")),
        ("inpainting", {"image": "coco/a.png", "caption": "A cat."}, Inpainting(picture, "A cat.")),
        (
            "edit",
            {"image": "coco/a.png", "instruction": "make it red", "new_caption": "A red cat."},
            Edit(None, "make it red", "A red cat."),  # the text is all that is learned: nothing shows the picture
        ),
        (
            "edit",
            {"image": "coco/a.png", "instruction": "<image>\nmake it red", "new_caption": "A red cat."},
            Edit(picture, "make it red", "A red cat."),
        ),
        (
            "dialogue",
            {
                "id": "7",
                "image": "coco/a.png",
                "conversations": said("What is it?\n<image>", "A cat.", "Sure?", "Yes."),
            },
            Dialogue(picture, (Turn("What is it?", "A cat."), Turn("Sure?", "Yes."))),
        ),
        ("dialogue", {"conversations": said("Hi", "Hello")}, Dialogue(None, (Turn("Hi", "Hello"),))),
        ("dialogue", {"image": "b.png", "conversations": said("Hi", "Hello")}, Dialogue(None, (Turn("Hi", "Hello"),))),
        (
            "dialogue",
            {"conversations": [{"from": "gpt", "value": "Welcome"}, *said("Hi", "Hello", "Bye")]},
            Dialogue(None, (Turn("Hi", "Hello"),)),
        ),
    ]
    for kind, entry, expected in cases:
        items = read_items(write(images, [entry]), kind, images=images)
        assert [items.item(index, seed=0) for index in range(len(items))] == [expected]


CAPTION = {"ori_caption": "a cat", "caption": "A cat."}
BAD: list[tuple[Kind, object, str]] = [
    ("text_to_image", {"ori_caption": "a"}, "'caption' is missing"),
    ("text_to_image", {"ori_caption": "a", "caption": " "}, "'caption' is empty"),
    ("text_to_image", {"ori_caption": 3, "caption": "b"}, "'ori_caption' is not text"),
    ("text_to_image", ["a"], "it is list and not an object"),
    ("similar_image", {"image": "coco/b.png", "caption": "b"}, "there is no picture .*coco/b.png"),
    ("similar_image", {"image": "nowhere/b.png", "caption": "b"}, "there is no picture .*nowhere/b.png"),
    ("edit", {"instruction": "<image> red", "new_caption": "c"}, "'image' is missing"),
    ("dialogue", {"conversations": []}, "'conversations' is no list"),
    ("dialogue", {"conversations": [{"from": "human"}]}, "turn 0 has no 'from' and 'value'"),
    ("dialogue", {"conversations": [*said("a", "b"), *said("c", "d")][1:]}, "no question with an answer|turn"),
    ("dialogue", {"conversations": said("a", "b")[:1]}, "no question with an answer"),
    ("dialogue", {"conversations": [said("a")[0], said("b")[0]]}, "turn 1 is 'human' where the other"),
    (
        "dialogue",
        {"image": "coco/a.png", "conversations": said("a", "b", "<image> c", "d")},
        "<image> stands in question 1",
    ),
    ("dialogue", {"image": "coco/a.png", "conversations": said("<image><image>", "b")}, "number 2 of the item"),
    ("similar_image", {"image": "zero\0/b.png", "caption": "b"}, "there is no picture"),
    ("similar_image", {"image": "half\ud83d/b.png", "caption": "b"}, "'image' has half a character"),
    ("text_to_image", {"ori_caption": "a", "caption": "half \ud83d"}, "'caption' has half a character"),
    ("dialogue", {"conversations": said("a", "half \ud83d")}, "turn 1 has half a character"),
]
BAD = [case for case in BAD if case[2] != "no question with an answer|turn"]


@pytest.mark.parametrize(("kind", "entry", "problem"), BAD)
def test_bad_item_stops_with_file_item_line_and_remedy(images: Path, kind: Kind, entry: object, problem: str) -> None:
    good = {"conversations": said("Hi", "Hello"), "image": "coco/a.png", "instruction": "red", "new_caption": "c"}
    path = write(images, [good | CAPTION, entry])
    with pytest.raises(DataError, match=problem) as caught:
        read_items(path, kind, images=images)
    line = next(
        number + 1
        for number, text in enumerate(path.read_text().splitlines())
        if number > 1 and text.rstrip() in (" {", " [")
    )
    assert f"{path}: item 1 (line {line}): " in str(caught.value)
    assert "on_error: skip" in str(caught.value)


@pytest.mark.parametrize(("kind", "entry", "problem"), BAD)
def test_bad_items_are_skipped_and_counted(images: Path, kind: Kind, entry: object, problem: str) -> None:
    good = {"conversations": said("Hi", "Hello"), "image": "coco/a.png", "instruction": "red", "new_caption": "c"}
    items = read_items(write(images, [entry, good | CAPTION, entry]), kind, images=images, on_error="skip")
    assert len(items) == 1
    assert items.counts.used == 1
    assert sum(items.counts.skipped.values()) == 2
    assert "1 items, 2 skipped (2 " in str(items.counts)


def test_picture_of_an_item_without_a_folder_for_pictures_is_refused(images: Path) -> None:
    path = write(images, [{"image": "coco/a.png", "caption": "A cat."}])
    with pytest.raises(DataError, match="Give the folder of its pictures as `images`"):
        read_items(path, "similar_image")


@pytest.mark.parametrize("on_error", ["stop", "skip"])
def test_damaged_file_is_refused_with_its_line(tmp_path: Path, on_error: Any) -> None:
    path = write(tmp_path, json.dumps([CAPTION, CAPTION], indent=1)[:-20])
    with pytest.raises(DataError, match=r"train\.json: line \d+, column \d+: it is no JSON"):
        read_items(path, "text_to_image", on_error=on_error)


def test_broken_json_line_stops_or_is_skipped(tmp_path: Path) -> None:
    lines = [json.dumps(CAPTION), '{"ori_caption": "a', "", json.dumps(CAPTION)]
    path = write(tmp_path, "\n".join(lines), "train.jsonl")
    with pytest.raises(DataError, match=r"train\.jsonl: line 2: it is no JSON"):
        read_items(path, "text_to_image")
    items = read_items(path, "text_to_image", on_error="skip")
    assert len(items) == 2
    assert str(items.counts).startswith(f"{path}: 2 items, 1 skipped (1 lines that are no JSON); {path}: line 2: ")


def test_line_of_json_ends_where_the_file_s_line_does(tmp_path: Path) -> None:
    texts = ["one\u2028two", "one\x85two", "one\u000btwo"]  # ends of lines to Unicode, not to JSON
    lines = [json.dumps({**CAPTION, "caption": text}, ensure_ascii=False) for text in texts]
    items = read_items(write(tmp_path, "\r\n".join([*lines, ""]), "train.jsonl"), "text_to_image")
    assert [items.item(index, seed=0) for index in range(3)] == [TextToImage("a cat", text) for text in texts]
    with pytest.raises(DataError, match="line 4: it is no JSON"):
        read_items(write(tmp_path, "\n".join([*lines, "{"]), "train.jsonl"), "text_to_image")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"\xff\xfe\x00", "byte 0 is not UTF-8"),
        (b'{"a": 1}', "line 1: it is no list of items"),
        (b"[" * 100_000, "nested too deeply|it is no JSON"),
        (b"[]", "there is no item to learn from"),
    ],
)
def test_file_that_is_no_data_set_is_refused(tmp_path: Path, content: bytes, problem: str) -> None:
    path = tmp_path / "train.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=problem):
        read_items(path, "text_to_image")


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="it cannot be read"):
        read_items(tmp_path / "train.json", "text_to_image")


def test_file_in_which_every_item_is_skipped_is_refused_with_the_reasons(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="2 skipped"):
        read_items(write(tmp_path, [{}, {}]), "text_to_image", on_error="skip")


def test_no_more_items_are_used_than_asked_for(tmp_path: Path) -> None:
    (tmp_path / "talk.json").write_text(
        json.dumps(
            [{"conversations": [{"from": "human", "value": f"{n}"}, {"from": "gpt", "value": "x"}]} for n in range(5)]
        )
    )
    used = read_items(tmp_path / "talk.json", "dialogue", at_most=3)
    assert (len(used), used.counts.used) == (3, 3)
    assert len(read_items(tmp_path / "talk.json", "dialogue", at_most=9)) == 5
