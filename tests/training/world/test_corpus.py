import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from services.mllm.instructions import SOURCE_CAPTION, Writing, question
from training.world import Scene, draw
from training.world.__main__ import main
from training.world.captions import change_sentences, scene_of
from training.world.corpus import Corpus, write_corpus
from training.world.words import background_en, background_zh, phrase_en, phrase_zh

COUNT = 25
HOUSE = (
    "The background is a plain green. "
    "There is a large filled red triangle, and it is placed in the middle center. "
    "There is a large filled white square, and it is placed in the bottom center."
)
ROOF = "The red triangle in the middle center, large and filled,"
WALL = "The white square in the bottom center, large and filled,"
STAR = " There is a small outlined yellow star, and it is placed in the top left."


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    write_corpus(Corpus(COUNT), folder)
    return folder


def items(folder: Path, name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((folder / "jsons" / name).read_text(encoding="utf-8"))
    return found


def pictured(answer: str) -> Scene:
    """Return the scene that an answer asks for."""
    return scene_of(answer.removeprefix("<gen_image> ").removesuffix(" </gen_image>"))


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("llmga-data/T2I/train.json", {"ori_caption", "caption", "image"}),
        ("llmga-data/SG/train.json", {"image", "caption"}),
        ("llmga-data/inpainting/train.json", {"image", "caption"}),
        ("llmga-data/Edit/train.json", {"image", "instruction", "new_caption"}),
        ("llava_world.json", {"id", "image", "conversations"}),
        ("llava_pretrain.json", {"id", "image", "conversations"}),
        ("text-data/requests.json", {"id", "conversations"}),
        ("text-data/lists.json", {"id", "conversations"}),
        ("text-data/changes.json", {"id", "conversations"}),
        ("text-data/talk.json", {"id", "conversations"}),
    ],
)
def test_files_have_the_published_fields(folder: Path, name: str, fields: set[str]) -> None:
    found = items(folder, name)
    assert len(found) == COUNT
    assert all(set(item) == fields for item in found)


@pytest.mark.parametrize("kind", ["T2I", "SG", "inpainting"])
def test_pictures_show_what_their_captions_say(folder: Path, kind: str) -> None:
    for item in items(folder, f"llmga-data/{kind}/train.json"):
        pixels = np.asarray(Image.open(folder / "imgs" / item["image"]))
        np.testing.assert_array_equal(pixels, draw(scene_of(item["caption"])))


def test_edited_caption_differs_from_the_picture(folder: Path) -> None:
    for item in items(folder, "llmga-data/Edit/train.json"):
        pixels = np.asarray(Image.open(folder / "imgs" / item["image"]))
        assert (pixels != draw(scene_of(item["new_caption"]))).any()


@pytest.mark.parametrize(
    "name",
    [
        "llava_world",
        "llava_pretrain",
        "sessions",
        *(f"text-data/{name}" for name in ("requests", "lists", "changes", "talk")),
    ],
)
def test_conversations_alternate_and_show_a_picture_once(folder: Path, name: str) -> None:
    for item in items(folder, f"{name}.json"):
        turns = item["conversations"]
        assert [turn["from"] for turn in turns] == ["human", "gpt"] * (len(turns) // 2)
        has_image = turns[0]["value"].startswith("<image>\n")
        assert has_image == ("image" in item)
        assert "<image>" not in "".join(turn["value"] for turn in turns[1:])
        assert "image" not in item or (folder / "imgs" / item["image"]).is_file()


@pytest.mark.parametrize(("name", "at_most"), [("text-data/changes", 4), ("sessions", 5)])
def test_changes_are_put_as_a_session_puts_them_and_each_changes_the_picture(
    folder: Path, name: str, at_most: int
) -> None:
    for item in items(folder, f"{name}.json"):
        turns = [turn["value"] for turn in item["conversations"]]
        asked, answers = turns[::2], turns[1::2]
        assert 2 <= len(asked) <= at_most
        if "image" in item:
            assert asked[0] == f"<image>\n{SOURCE_CAPTION}"
        for place, words in enumerate(asked):
            # What is put already goes through as it is.
            assert "image" in item or question(Writing.TEXT_TO_IMAGE, words, goes_on=place > 0) == words
        scenes = [pictured(answer) for answer in answers]
        assert all(before != after for before, after in pairwise(scenes))
        if "image" in item:
            shown = np.asarray(Image.open(folder / "imgs" / item["image"]))
            np.testing.assert_array_equal(shown, draw(scenes[0]))


def test_half_of_the_sessions_show_a_picture(folder: Path) -> None:
    assert 0.2 < sum("image" in item for item in items(folder, "sessions.json")) / COUNT < 0.8


def test_sessions_ask_for_the_same_again(folder: Path) -> None:
    asked = [turn["value"] for item in items(folder, "sessions.json") for turn in item["conversations"][2::2]]
    again = [words for words in asked if "again w" in words.lower() or "再画一次" in words]
    assert 0.02 < len(again) / len(asked) < 0.4


def test_lists_leave_nothing_free(folder: Path) -> None:
    for item in items(folder, "text-data/lists.json"):
        asked, answer = (turn["value"] for turn in item["conversations"])
        scene = pictured(answer)
        named = [phrase(thing, size=True, fill=True) for thing in scene.objects for phrase in (phrase_en, phrase_zh)]
        assert sum(asked.count(words) for words in set(named)) == len(scene.objects)
        assert any(words(scene.background, pattern=True) in asked for words in (background_en, background_zh))


def test_answers_can_say_what_changes_before_the_caption(folder: Path, tmp_path: Path) -> None:
    write_corpus(Corpus(COUNT, pictures=(), tells=True), tmp_path / "telling")
    for name in ("sessions.json", "text-data/changes.json"):
        for silent, telling in zip(items(folder, name), items(tmp_path / "telling", name), strict=True):
            plain, told = ([turn["value"] for turn in item["conversations"]] for item in (silent, telling))
            assert told[::2] == plain[::2]
            assert told[1] == plain[1], "the first picture is no change"
            for before, after, answer in zip(plain[1::2], plain[3::2], told[3::2], strict=False):
                words = change_sentences(pictured(before), pictured(after))
                assert words
                assert answer == f"{words} {after}"


@pytest.mark.parametrize(
    ("after", "words"),
    [
        (HOUSE.replace("red", "blue"), f"{ROOF} is now a large filled blue triangle in the middle center."),
        (HOUSE.replace("plain green", "striped gray"), "The background is now a striped gray."),
        (HOUSE.partition(" There is a large filled white")[0], f"{WALL} is gone."),
        (
            HOUSE.replace(" There is a large filled red", f"{STAR} There is a large filled red"),
            "A small outlined yellow star in the top left is new.",
        ),
        (HOUSE, ""),
    ],
)
def test_a_change_is_told_with_all_that_it_changes(after: str, words: str) -> None:
    assert change_sentences(scene_of(HOUSE), scene_of(after)) == words


def test_edits_are_put_in_the_two_turns_of_serving(folder: Path) -> None:
    edits = [item["conversations"] for item in items(folder, "llava_world.json") if "Edit/" in item["image"]]
    assert edits
    for first, before, _, after in edits:
        assert first["value"] == "<image>\nGenerate a similar image"
        assert pictured(before["value"]) != pictured(after["value"])


def test_equal_corpora_have_equal_files_and_other_seeds_other_scenes(folder: Path, tmp_path: Path) -> None:
    write_corpus(Corpus(COUNT, pictures=()), tmp_path / "same")
    write_corpus(Corpus(COUNT, seed=1, pictures=()), tmp_path / "other")
    for name in ("llmga-data/Edit/train.json", "llava_world.json"):
        assert items(tmp_path / "same", name) == items(folder, name)
    captions = {item["caption"] for item in items(folder, "llmga-data/SG/train.json")}
    others = {item["caption"] for item in items(tmp_path / "other", "llmga-data/SG/train.json")}
    assert len(captions & others) <= 1
    assert not (tmp_path / "same" / "imgs").exists()


def test_command_writes_what_it_says_and_leaves_other_folders_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(tmp_path / "corpus"), "--count", "3", "--split", "held_out", "--pictures", "Edit"]
    assert main(arguments) == 0
    meta = json.loads((tmp_path / "corpus" / "meta.json").read_text())
    assert meta["corpus"] == {
        "count": 3, "split": "held_out", "seed": 0, "chinese": 0.35, "pictures": ["Edit"], "tells": False,
    }  # fmt: skip
    assert sorted(path.name for path in (tmp_path / "corpus" / "imgs").iterdir()) == ["Edit"]
    assert main(arguments) == 1
    assert "not an empty folder" in capsys.readouterr().err
