from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from services.mllm.conversation import Turn
from tests.services.mllm.checkpoints.tokenizers_of import by_the_sheet, write_tokenizer
from tests.training.data.test_labels import GOLDEN, TURNS, spelled
from training.data.collator import Collator, Encoded, learned_tokens
from training.data.conversations import Rules
from training.data.formats import DataError, Dialogue, Item, SimilarImage, TextToImage
from training.data.labels import IGNORED, Labeled, labeled
from training.data.mixture import Mixture
from training.data.pictures import TowerInput
from training.data.tokens import IMAGE_ID, MODEL_TYPES, prompt_builder

PICTURE = torch.ones(3, 14, 14)
COLLATOR = Collator(image_tokens=4, max_length=12, side=14)


def encoded(ids: list[int], learned: int, picture: torch.Tensor | None = None) -> Encoded:
    labels = [IGNORED] * (len(ids) - learned) + ids[len(ids) - learned :]
    return Encoded(Labeled(ids, labels), picture)


def test_picture_s_tokens_take_the_place_of_its_id_and_rows_are_padded_on_the_right() -> None:
    batch = COLLATOR([encoded([5, IMAGE_ID, 6, 7], 2, PICTURE), encoded([5, 8, 9], 1)], [0, 0])
    picture = [IMAGE_ID] * 4
    assert batch["ids"].tolist() == [[5, *picture, 6, 7], [5, 8, 9, 0, 0, 0, 0]]
    hidden = [IGNORED] * 5
    assert batch["labels"].tolist() == [[*hidden, 6, 7], [IGNORED, IGNORED, 9, *[IGNORED] * 4]]
    assert batch["attention_mask"].tolist() == [[1] * 7, [1, 1, 1, 0, 0, 0, 0]]
    assert torch.equal(batch["pixel_values"], PICTURE[None])
    assert learned_tokens(batch) == 3


def test_padding_hides_no_word_that_has_the_padding_s_id() -> None:
    batch = COLLATOR([encoded([0, 3, 0, 4], 2), encoded([0, 3], 1)], [0, 0])
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]


def test_what_is_too_long_is_cut_at_its_end() -> None:
    batch = COLLATOR([encoded([1, IMAGE_ID, *range(20, 40)], 5, PICTURE)], [0])
    assert batch["ids"].tolist() == [[1, *[IMAGE_ID] * 4, *range(20, 27)]]
    assert batch["labels"].tolist() == [[IGNORED] * 12]
    assert learned_tokens(batch) == 0


def test_batch_without_pictures_has_a_black_one_for_the_projector() -> None:
    batch = COLLATOR([encoded([1, 2], 1)], [0])
    assert batch["pixel_values"].shape == (1, 3, 14, 14)
    assert not batch["pixel_values"].any()
    assert IMAGE_ID not in batch["ids"]


def test_picture_that_has_no_room_is_refused() -> None:
    with pytest.raises(DataError, match="max_length is 576"):
        Collator(image_tokens=576, max_length=576, side=336)
    with pytest.raises(DataError, match="no room"):
        COLLATOR([encoded([*range(10), IMAGE_ID], 1, PICTURE)], [0])


@pytest.mark.parametrize("family", sorted(MODEL_TYPES))
def test_batch_of_each_family_s_template_is_that_of_the_sheet(tmp_path: Path, family: str) -> None:
    tokenizer = write_tokenizer(tmp_path, family)
    builder = prompt_builder(tmp_path, family)
    rows = [
        Encoded(labeled(builder, [Turn("Hi", "Yes")], has_image=False), None),
        Encoded(labeled(builder, TURNS, has_image=True), PICTURE),
    ]
    batch = Collator(image_tokens=4, max_length=4_096, side=14)(rows, [0, 0])
    prompt = by_the_sheet(tokenizer, GOLDEN[family].replace("⟦", "").replace("⟧", ""), IMAGE_ID)
    at = prompt.index(IMAGE_ID)
    assert batch["ids"][1].tolist() == [*prompt[:at], *[IMAGE_ID] * 4, *prompt[at + 1 :]]
    is_learned = batch["labels"] != IGNORED
    assert torch.equal(batch["labels"][is_learned], batch["ids"][is_learned])
    answers = "".join(part.partition("⟧")[0] for part in GOLDEN[family].split("⟦")[1:])
    assert spelled(batch["labels"][1][is_learned[1]].tolist(), tokenizer, family) == answers
    short = len(rows[0].text.ids)
    assert batch["attention_mask"].tolist() == [[1] * short + [0] * (len(prompt) + 3 - short), [1] * (len(prompt) + 3)]
    assert batch["ids"][0].tolist() == [*rows[0].text.ids, *[0] * (len(prompt) + 3 - short)]
    assert not is_learned[0, short:].any()
    assert torch.equal(batch["pixel_values"], PICTURE[None])


class OneItem:
    def __init__(self, *items: Item) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def item(self, index: int, seed: int) -> Item:
        return self.items[index]


def mixture(folder: Path, *sets: OneItem, **settings: Any) -> Mixture:
    write_tokenizer(folder, "qwen2")
    builder = prompt_builder(folder, "qwen2")
    given = {"image_tokens": 4, "max_length": 2_048} | settings
    return Mixture(sets, builder, Rules("squared"), TowerInput(14), **given)


def test_mixture_holds_all_sets_in_their_natural_sizes(tmp_path: Path) -> None:
    white = np.full((20, 20, 3), 255, np.uint8)
    chats = OneItem(*(Dialogue(None, (Turn(str(number), "yes"),)) for number in range(3)))
    mixed = mixture(tmp_path, chats, OneItem(SimilarImage(white, "A cat.")))
    assert len(mixed) == 4
    found = [mixed.example(position, seed=1) for position in range(4)]
    assert [each.picture is not None for each in found] == [False, False, False, True]
    assert len({tuple(each.text.ids) for each in found}) == 4
    assert found[3].picture is not None
    assert found[3].picture.shape == (3, 14, 14)
    assert not mixed.counts


def test_caption_of_two_thousand_tokens_is_cut_and_counted(tmp_path: Path) -> None:
    caption = " ".join(f"{number % 10}" for number in range(2_000))
    mixed = mixture(tmp_path, OneItem(TextToImage("digits", caption)))
    example = mixed.example(0, seed=0)
    assert len(example.text.ids) > 2_048
    assert mixed.counts == {"cut": 1}
    batch = Collator(image_tokens=4, max_length=2_048, side=14)([example], [0])
    assert batch["ids"].shape == (1, 2_048)
    assert batch["labels"][0, -1] == batch["ids"][0, -1]  # learned up to the cut, without a terminator
    end = prompt_builder(tmp_path, "qwen2").build([Turn("a", "b")]).token_ids[-1]
    assert end not in batch["labels"]


def test_damaged_picture_stops_or_its_place_is_taken_by_the_next_item(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no picture")
    items = OneItem(SimilarImage(tmp_path / "broken.png", "A cat."), Dialogue(None, (Turn("Hi", "Hello"),)))
    with pytest.raises(DataError, match=r"broken\.png"):
        mixture(tmp_path, items).example(0, seed=0)
    skipping = mixture(tmp_path, items, on_error="skip")
    assert skipping.example(0, seed=0).text == skipping.example(1, seed=0).text
    assert skipping.counts == {"skipped": 1}


def test_question_of_two_thousand_tokens_leaves_nothing_to_learn_and_is_counted(tmp_path: Path) -> None:
    question = " ".join(f"{number % 10}" for number in range(2_000))
    mixed = mixture(tmp_path, OneItem(Dialogue(None, (Turn(question, "Yes."),))))
    batch = Collator(image_tokens=4, max_length=2_048, side=14)([mixed.example(0, seed=0)], [0])
    assert mixed.counts == {"cut": 1}
    assert learned_tokens(batch) == 0


@pytest.mark.parametrize("mode", ["L", "RGBA", "CMYK"])
def test_tower_sees_every_kind_of_picture_in_its_colors(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "a.jpg"
    Image.new("L", (20, 12), 200).convert(mode).save(path, "PNG" if mode == "RGBA" else "JPEG")
    example = mixture(tmp_path, OneItem(SimilarImage(path, "A cat."))).example(0, seed=0)
    plain = mixture(tmp_path, OneItem(SimilarImage(np.full((12, 20, 3), 200, np.uint8), "A cat."))).example(0, seed=0)
    assert example.text == plain.text
    assert example.picture is not None
    assert plain.picture is not None
    torch.testing.assert_close(example.picture, plain.picture, atol=0.05, rtol=0)


@pytest.mark.parametrize("content", [None, "huge"])
def test_picture_that_is_missing_or_huge_when_its_turn_comes_is_skipped_too(
    tmp_path: Path, content: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "a.png"
    if content:
        Image.new("1", (20_001, 8)).save(path)
    items = OneItem(SimilarImage(path, "A cat."), Dialogue(None, (Turn("Hi", "Hello"),)))
    with pytest.raises(DataError, match=r"a\.png"):
        mixture(tmp_path, items).example(0, seed=0)
    skipping = mixture(tmp_path, items, on_error="skip")
    for _ in range(5):
        assert skipping.example(0, seed=0).picture is None
    assert skipping.counts == {"skipped": 5}
    assert caplog.text.count("a.png") == 3


def test_data_in_which_nothing_can_be_used_stop_the_run(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no picture")
    items = OneItem(SimilarImage(tmp_path / "broken.png", "A cat."))
    with pytest.raises(DataError, match="100 items in a row"):
        mixture(tmp_path, items, on_error="skip").example(0, seed=0)
