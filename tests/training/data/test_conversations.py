from collections import Counter

import numpy as np
import pytest

from services.mllm.conversation import Turn
from services.mllm.instructions import Writing, is_chinese, question
from services.mllm.pictures import Pixels
from training.data.conversations import Conversation, Rules, conversation_of
from training.data.formats import Dialogue, Edit, Inpainting, Item, SimilarImage, TextToImage
from training.data.phrasings import CHINESE, ENGLISH

WHITE: Pixels = np.full((128, 128, 3), 255, np.uint8)
RULES = Rules(side=128)
VISITS = 800


def visits(item: Item, rules: Rules = RULES, count: int = VISITS) -> list[Conversation]:
    return [conversation_of(item, np.random.default_rng(seed), rules) for seed in range(count)]


def only(conversation: Conversation) -> Turn:
    (turn,) = conversation.turns
    return turn


def share(found: list[bool]) -> float:
    return sum(found) / len(found)


def test_text_to_image_describes_or_generates_with_the_request_before_or_after() -> None:
    turns = [only(each) for each in visits(TextToImage("a cat", "A large cat."))]
    generated = [turn for turn in turns if turn.answer == "<gen_image> A large cat. </gen_image>"]
    described = [turn for turn in turns if turn.answer == "A large cat."]
    assert len(generated) + len(described) == VISITS
    assert len(generated) / VISITS == pytest.approx(0.5, abs=0.06)
    behind = [turn for turn in generated if turn.question.startswith("a cat ")]
    assert len(behind) / len(generated) == pytest.approx(0.5, abs=0.08)
    served = question(Writing.TEXT_TO_IMAGE, "a cat")
    assert {turn.question for turn in behind} == {f"a cat {way}" for way in ENGLISH.draw_behind}
    assert {turn.question for turn in generated if turn not in behind} == {
        *(f"{way} a cat" for way in ENGLISH.draw_before),
        served,
    }
    assert {turn.question for turn in described} == {
        *(f"{way} a cat" for way in ENGLISH.enrich),
        *(f"a cat {way}" for way in ENGLISH.enrich),
        question(Writing.DESCRIBE, "a cat"),
    }


def test_chinese_captions_are_asked_for_in_chinese_and_answered_in_english() -> None:
    turns = [only(each) for each in visits(TextToImage("一只大猫", "A large cat."))]
    assert all(is_chinese(turn.question) and "一只大猫" in turn.question for turn in turns)
    assert question(Writing.TEXT_TO_IMAGE, "一只大猫") in {turn.question for turn in turns}
    assert {turn.answer for turn in turns} == {"A large cat.", "<gen_image> A large cat. </gen_image>"}


def test_similar_image_is_regenerated_in_seven_of_ten_and_described_in_three() -> None:
    found = visits(SimilarImage(WHITE, "A cat."))
    generated = [only(each) for each in found if only(each).answer == "<gen_image> A cat. </gen_image>"]
    described = [only(each) for each in found if only(each).answer == "A cat."]
    assert len(generated) + len(described) == VISITS
    assert len(generated) / VISITS == pytest.approx(0.7, abs=0.05)
    assert {turn.question for turn in generated} == set(ENGLISH.similar)
    assert {turn.question for turn in described} == set(ENGLISH.caption)
    assert all(each.pixels is not None and np.array_equal(each.pixels, WHITE) for each in found)


def test_inpainting_shows_black_holes_and_asks_by_their_kind() -> None:
    found = visits(Inpainting(WHITE, "A cat."))
    assert {only(each).answer for each in found} == {"<gen_image> A cat. </gen_image>"}
    kinds: Counter[str] = Counter()
    for each in found:
        assert each.pixels is not None
        assert set(np.unique(each.pixels)) <= {0, 255}
        black = (each.pixels == 0).all(axis=2)
        assert black.any()
        assert not black.all()
        asked = only(each).question
        if asked in ENGLISH.outpaint:
            kinds["outpaint"] += 1
            edges = [black[0].all(), black[-1].all(), black[:, 0].all(), black[:, -1].all()]
            assert any(edges)  # a whole border is missing
        else:
            assert asked in ENGLISH.inpaint
            kinds["inpaint"] += 1
    assert kinds["outpaint"] / VISITS == pytest.approx(0.5, abs=0.06)


def test_edit_keeps_the_last_letter_of_its_instruction() -> None:
    (conversation,) = visits(Edit(None, "make it red", "A red cat."), count=1)
    assert conversation == Conversation((Turn("make it red", "<gen_image> A red cat. </gen_image>"),), None)


def test_edit_whose_instruction_shows_the_picture_has_one_turn() -> None:
    (conversation,) = visits(Edit(WHITE, "make it red", "A red cat."), count=1)
    assert len(conversation.turns) == 1
    assert conversation.pixels is not None


def test_dialogue_stays_as_given() -> None:
    turns = (Turn("Hi", "Hello"), Turn("How many?", "2"))
    assert visits(Dialogue(None, turns), count=1) == [Conversation(turns, None)]


def test_requests_about_pictures_are_put_in_chinese_by_choice() -> None:
    rules = Rules(side=128, chinese=0.25)
    for item in (SimilarImage(WHITE, "A cat."), Inpainting(WHITE, "A cat.")):
        chinese = [is_chinese(only(each).question) for each in visits(item, rules, 400)]
        assert share(chinese) == pytest.approx(0.25, abs=0.07)


def test_what_serving_says_is_in_the_pools() -> None:
    assert question(Writing.SIMILAR, "") in ENGLISH.similar
    assert question(Writing.INPAINT, "") in ENGLISH.inpaint
    assert question(Writing.OUTPAINT, "") in ENGLISH.outpaint
    assert question(Writing.DESCRIBE, "", has_picture=True) in ENGLISH.caption


@pytest.mark.parametrize("pools", [ENGLISH, CHINESE])
def test_pools_have_no_doubles(pools: object) -> None:
    for name in ("caption", "similar", "inpaint", "outpaint", "draw_before", "draw_behind", "enrich"):
        wordings = getattr(pools, name)
        assert len(set(wordings)) == len(wordings) >= 6


def test_same_seed_gives_the_same_conversation() -> None:
    one, other = (visits(Inpainting(WHITE, "A cat."), count=20) for _ in range(2))
    for left, right in zip(one, other, strict=True):
        assert left.turns == right.turns
        assert np.array_equal(left.pixels, right.pixels)  # type: ignore[arg-type]  # both have pictures
