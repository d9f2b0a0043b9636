"""The writer over a scripted engine: what the real one gives only by luck."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from services.mllm.conversation import QWEN2, Turn
from services.mllm.pictures import Picture, picture_of
from services.mllm.tokenization import ImageSlot, PromptBuilder
from services.mllm.writing import Answer, Piece, PromptWriter, Sampling
from shared.errors import PromptEmpty

TURNS = [Turn("draw a fox")]


class ScriptedEngine:
    """Gives these pieces, and remembers what it was asked and whether it was left early."""

    def __init__(self, *texts: str, finish_reason: str | None = "stop") -> None:
        self.texts = texts
        self.finish_reason = finish_reason
        self.asked: list[Sampling] = []
        self.prompts: list[tuple[list[int], Picture | None]] = []
        self.given = 0
        self.closed = False

    async def generate(
        self, token_ids: list[int], sampling: Sampling, *, picture: Picture | None, request_id: str, priority: int
    ) -> AsyncGenerator[Piece, None]:
        self.asked.append(sampling)
        self.prompts.append((token_ids, picture))
        try:
            for number, text in enumerate(self.texts, start=1):
                self.given = number
                yield Piece(text, [number], self.finish_reason if number == len(self.texts) else None)
        finally:
            self.closed = True


def writer(engine: ScriptedEngine, *, max_model_len: int = 1_000, tells_changes: bool = False) -> PromptWriter:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={sign: index for index, sign in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    builder = PromptBuilder(
        PreTrainedTokenizerFast(tokenizer_object=tokenizer),
        QWEN2,
        control_tokens=[],
        image_slot=ImageSlot(999, 4),
        max_prompt_tokens=max_model_len - 50,
    )
    return PromptWriter(engine, builder, model="mini", max_model_len=max_model_len, tells_changes=tells_changes)


async def written(engine: ScriptedEngine, max_tokens: int = 64, **options: Any) -> tuple[list[str], Answer]:
    """Return the deltas and the answer."""
    sampling = Sampling(max_tokens=max_tokens, temperature=0.0)
    parts = writer(engine, **options).write(TURNS, sampling, request_id="r", priority=0)
    *deltas, answer = [part async for part in parts]
    assert isinstance(answer, Answer)
    return [str(delta) for delta in deltas], answer


async def test_deltas_are_prompt_text_and_nothing_else() -> None:
    deltas, answer = await written(ScriptedEngine("Sure! <gen", "_image> a ", "fox </gen_im", "age>"))
    assert deltas == ["a", " fox"]
    assert answer.prompt.text == "a fox"
    assert (answer.prompt.completion_tokens, answer.token_ids) == (4, [1, 2, 3, 4])


async def test_the_engine_is_left_when_the_prompt_is_closed_and_it_goes_on() -> None:
    engine = ScriptedEngine("<gen_image>a</gen_image>", " and", " on", finish_reason="length")
    _, answer = await written(engine)
    assert (engine.given, engine.closed) == (1, True)
    assert (answer.prompt.text, answer.prompt.finish_reason) == ("a", "stop")


async def test_the_engine_is_asked_to_stop_at_the_closing_tag() -> None:
    engine = ScriptedEngine("<gen_image>a</gen_image>")
    await written(engine)
    assert engine.asked[0].stop == ("</gen_image>",)


async def test_an_answer_without_tags_is_one_delta_at_the_end() -> None:
    deltas, answer = await written(ScriptedEngine("a fox", " in the", " snow"))
    assert deltas == ["a fox in the snow"]
    assert answer.prompt.fallback == "answer"


async def test_an_answer_cut_inside_its_prompt_says_both() -> None:
    deltas, answer = await written(ScriptedEngine("<gen_image> a fox", " in", finish_reason="length"))
    assert "".join(deltas) == answer.prompt.text == "a fox in"
    assert (answer.prompt.fallback, answer.prompt.finish_reason) == ("unclosed", "length")


async def test_an_empty_answer_is_an_error() -> None:
    with pytest.raises(PromptEmpty):
        await written(ScriptedEngine("<gen_image> ", "</gen_image>"))


async def test_the_answer_never_asks_for_more_than_the_context_has_left() -> None:
    engine = ScriptedEngine("<gen_image>a</gen_image>")
    _, answer = await written(engine, max_tokens=100_000, max_model_len=400)
    assert engine.asked[0].max_tokens == 400 - len(answer.prompt_token_ids)


async def test_closing_the_writer_closes_the_engine_s_request() -> None:
    engine = ScriptedEngine("<gen_image> a", " fox", " and")
    parts = writer(engine).write(TURNS, Sampling(64, 0.0), request_id="r", priority=0)
    async with aclosing(parts):
        assert await anext(parts) == "a"
        assert not engine.closed
    assert engine.closed


async def spoken(engine: ScriptedEngine, sampling: Sampling) -> tuple[list[Piece], Answer]:
    """Return the pieces and the answer."""
    *pieces, answer = [part async for part in writer(engine).speak(TURNS, sampling, request_id="r", priority=0)]
    assert isinstance(answer, Answer)
    return [piece for piece in pieces if isinstance(piece, Piece)], answer


async def test_what_is_spoken_is_given_as_it_comes_with_its_tags() -> None:
    engine = ScriptedEngine(" Sure: <gen_image> a ", "fox </gen_image>", " or not")
    pieces, answer = await spoken(engine, Sampling(64, 0.0))
    assert "".join(piece.text for piece in pieces) == answer.text == "Sure: <gen_image> a fox </gen_image> or not"
    assert answer.prompts == []
    assert [token for piece in pieces for token in piece.token_ids] == answer.token_ids == [1, 2, 3]


async def test_white_space_around_what_is_spoken_is_left_out() -> None:
    pieces, answer = await spoken(ScriptedEngine(" ", "\n a", " ", " b ", "\n"), Sampling(64, 0.0))
    assert [piece.text for piece in pieces] == ["", "a", "", "  b", ""]
    assert answer.text == "a  b"


async def test_speaking_goes_on_after_a_prompt_and_stops_where_the_caller_says() -> None:
    engine = ScriptedEngine("a")
    await spoken(engine, Sampling(64, 0.0, stop=("</gen_image>", "###")))
    assert engine.asked[0].stop == ("###",)
    assert not engine.asked[0].keeps_stop


async def test_the_answer_holds_the_whole_text_for_the_history() -> None:
    _, answer = await written(ScriptedEngine(" Here: <gen_image> a fox", " </gen_image>"))
    assert answer.text == "Here: <gen_image> a fox </gen_image>"
    assert answer.prompt.text == "a fox"


async def test_a_picture_goes_to_the_engine_and_one_id_stands_for_it() -> None:
    engine = ScriptedEngine("<gen_image> a fox </gen_image>")
    picture = picture_of(np.zeros((4, 4, 3), np.uint8))
    parts = writer(engine).write(TURNS, Sampling(64, 0.0), picture=picture, request_id="r", priority=0)
    *_, answer = [part async for part in parts]
    assert isinstance(answer, Answer)
    ((token_ids, seen),) = engine.prompts
    assert seen is picture
    assert token_ids.count(999) == 1
    assert answer.prompt_tokens == len(token_ids) + 3, "four positions of the picture"
    await written(engine)
    assert engine.prompts[1][1] is None
    assert 999 not in engine.prompts[1][0]


async def test_an_answer_that_is_given_its_tag_tells_its_first_words_at_once() -> None:
    engine = ScriptedEngine(" a fox", " sleeps </gen_image>")
    parts = writer(engine).write(TURNS, Sampling(64, 0.0, opens=True), request_id="r", priority=0)
    first, *_, answer = [part async for part in parts]
    assert isinstance(answer, Answer)
    assert first == "a fox"
    assert (answer.prompt.text, answer.prompt.fallback) == ("a fox sleeps", None)
    assert answer.text == "<gen_image> a fox sleeps </gen_image>"
    assert (answer.token_ids, answer.prompt.completion_tokens) == ([1, 2], 2)  # the tag is none of them
    _, plain = await written(other := ScriptedEngine("<gen_image> a"))
    tag = len(engine.prompts[0][0]) - len(other.prompts[0][0])
    assert tag == len("<gen_image>")  # a token per byte here
    assert answer.prompt_tokens == plain.prompt_tokens + tag


async def test_an_answer_that_is_given_its_tag_and_is_cut_off_keeps_what_it_has() -> None:
    engine = ScriptedEngine(" a", " fox", finish_reason="length")
    parts = writer(engine).write(TURNS, Sampling(64, 0.0, opens=True), request_id="r", priority=0)
    *_, answer = [part async for part in parts]
    assert isinstance(answer, Answer)
    assert (answer.prompt.text, answer.prompt.fallback, answer.prompt.finish_reason) == ("a fox", "unclosed", "length")


async def test_what_is_spoken_is_given_no_tag() -> None:
    engine, other = ScriptedEngine("hello"), ScriptedEngine("hello")
    for asked, opens in ((engine, True), (other, False)):
        [_ async for _ in writer(asked).speak(TURNS, Sampling(64, 0.0, opens=opens), request_id="r", priority=0)]
    assert engine.prompts == other.prompts
