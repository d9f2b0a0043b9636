"""Tasks over a scripted engine: which turns are put, in how many answers, and what comes back."""

from collections.abc import AsyncGenerator
from contextlib import aclosing

import numpy as np
import pytest
from tokenizers import decoders, pre_tokenizers

from services.mllm.conversation import Turn
from services.mllm.instructions import SOURCE_CAPTION, Writing
from services.mllm.pictures import Picture, picture_of
from services.mllm.tasks import Work, Written, carry_out, work_of
from services.mllm.writing import Piece, Sampling
from shared.contracts import GenerationRequest, HistoryTurn, Task
from shared.errors import PromptEmpty
from tests.services.mllm.test_writing import ScriptedEngine, writer

ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())  # the vocabulary of `writer`
IMAGE = 999  # and the id that stands for its pictures
PICTURE = picture_of(np.zeros((4, 4, 3), np.uint8))


class Dialog(ScriptedEngine):
    """Gives these answers one after the other, and remembers the texts and pictures that it was shown."""

    def __init__(self, *answers: str) -> None:
        super().__init__()
        self.answers = list(answers)
        self.shown: list[str] = []
        self.pictures: list[Picture | None] = []

    async def generate(
        self, token_ids: list[int], sampling: Sampling, *, picture: Picture | None, request_id: str, priority: int
    ) -> AsyncGenerator[Piece, None]:
        self.shown.append(decoders.ByteLevel().decode([ALPHABET[token] for token in token_ids if token != IMAGE]))
        self.pictures.append(picture)
        self.asked.append(sampling)
        self.closed = False
        try:
            for sign in self.answers.pop(0):
                yield Piece(sign, [1])
            yield Piece("", [2], "stop")
        finally:
            self.closed = True


async def carried_out(engine: Dialog, work: Work) -> tuple[str, Written]:
    """Return what was told on the way, and the end."""
    sampling = Sampling(max_tokens=400, temperature=0.0, logprobs=1)
    parts = carry_out(writer(engine, max_model_len=4_000), work, sampling, request_id="r", priority=0)
    *told, written = [part async for part in parts]
    assert isinstance(written, Written)
    return "".join(str(part) for part in told), written


async def test_an_edit_is_two_answers_of_which_the_second_is_told() -> None:
    engine = Dialog("<gen_image> a cat </gen_image>", "Sure. <gen_image> a dog </gen_image>")
    told, written = await carried_out(engine, Work(Writing.EDIT, "make it a dog", PICTURE))
    assert told == written.answer.prompt.text == "a dog"
    assert written.source is not None
    assert written.source.text == "a cat"
    first, second = engine.shown
    assert f"{SOURCE_CAPTION}<|im_end|>" in first
    assert "make it a dog" not in first
    assert second.startswith(first)
    assert "<gen_image> a cat </gen_image><|im_end|><|im_start|>user\nmake it a dog<|im_end|>" in second
    assert engine.pictures == [PICTURE, PICTURE]


PAST = [Turn("draw a cat", "<gen_image> a cat </gen_image>")]


@pytest.mark.parametrize(
    ("work", "is_change"),
    [
        (Work(Writing.EDIT, "make it a dog", PICTURE), True),
        (Work(Writing.EDIT, "make it a dog", PICTURE, PAST), True),
        (Work(Writing.TEXT_TO_IMAGE, "make it a dog", history=PAST), True),
        (Work(Writing.TEXT_TO_IMAGE, "draw a dog", history=[Turn("hi", "hello")]), False),
        (Work(Writing.TEXT_TO_IMAGE, "draw a dog"), False),
        (Work(Writing.SIMILAR, "", PICTURE, PAST), False),
    ],
)
@pytest.mark.parametrize("tells_changes", [False, True])
async def test_a_model_that_tells_what_changes_writes_the_tag_by_itself_there(
    work: Work, is_change: bool, tells_changes: bool
) -> None:
    has_words = is_change and tells_changes
    end = "a dog </gen_image>"
    answers = [" a cat </gen_image>"] if work.writing is Writing.EDIT else []
    engine = Dialog(*answers, f"The cat is now a dog. <gen_image> {end}" if has_words else f" {end}")
    asking = writer(engine, max_model_len=4_000, tells_changes=tells_changes)
    parts = carry_out(asking, work, Sampling(400, 0.0, opens=True), request_id="r", priority=0)
    *told, written = [part async for part in parts]
    assert isinstance(written, Written)
    assert "".join(map(str, told)) == written.answer.prompt.text == "a dog"
    assert written.answer.prompt.fallback is None
    *sources, shown = engine.shown
    assert shown.endswith("<gen_image>") != has_words
    assert all(source.endswith("<gen_image>") for source in sources), "the caption before an edit is no change"


async def test_an_edit_without_a_source_caption_is_an_error() -> None:
    with pytest.raises(PromptEmpty):
        await carried_out(Dialog("<gen_image></gen_image>"), Work(Writing.EDIT, "make it a dog", PICTURE))


async def test_leaving_an_edit_in_its_first_answer_leaves_the_engine() -> None:
    class Endless(Dialog):
        async def generate(
            self, token_ids: list[int], sampling: Sampling, *, picture: Picture | None, request_id: str, priority: int
        ) -> AsyncGenerator[Piece, None]:
            try:
                yield Piece("<gen_image>a", [1])
                raise ConnectionError
            finally:
                self.closed = True

    engine = Endless()
    parts = carry_out(writer(engine), Work(Writing.EDIT, "x", PICTURE), Sampling(9, 0.0), request_id="r", priority=0)
    async with aclosing(parts):
        with pytest.raises(ConnectionError):
            await anext(parts)
    assert engine.closed


async def test_a_story_goes_on_to_its_end_and_keeps_every_prompt() -> None:
    engine = Dialog("Once <gen_image> a fox </gen_image> and <gen_image> a hen </gen_image>. The end.")
    told, written = await carried_out(engine, Work(Writing.STORY, "a fox and a hen"))
    assert told == "a fox"
    assert [prompt.text for prompt in written.answer.prompts] == ["a fox", "a hen"]
    assert written.answer.text.endswith("The end.")
    assert engine.asked[0].stop == ()


async def test_an_answer_in_words_is_told_as_it_is() -> None:
    engine = Dialog("There are (two) cats, <b>see</b>.")
    told, written = await carried_out(engine, Work(Writing.ANSWER, "how many cats?", PICTURE))
    assert told == written.answer.text == "There are (two) cats, <b>see</b>."
    assert written.answer.prompts == []


@pytest.mark.parametrize(("task", "fallback"), [(Writing.DESCRIBE, None), (Writing.TEXT_TO_IMAGE, "answer")])
async def test_words_without_tags_are_a_fallback_only_where_a_prompt_was_asked_for(
    task: Writing, fallback: str | None
) -> None:
    told, written = await carried_out(Dialog("A red fox (small)."), Work(task, "a fox"))
    assert told == written.answer.prompt.text == "A red fox small ."
    assert written.answer.prompt.fallback == fallback


async def test_history_comes_before_the_request_and_loses_its_oldest_turns_when_it_is_too_long() -> None:
    history = [Turn(f"question {number} " + "x" * 1_500, f"answer {number}") for number in range(3)]
    engine = Dialog("<gen_image>a</gen_image>")
    _, written = await carried_out(engine, Work(Writing.TEXT_TO_IMAGE, "draw a fox", history=history))
    (shown,) = engine.shown
    assert written.answer.dropped_turns == written.answer.prompt.dropped_turns == 1
    assert "question 0" not in shown
    assert shown.index("question 1") < shown.index("answer 2") < shown.index("draw a fox")


async def test_a_history_that_fits_is_not_reported() -> None:
    engine = Dialog("<gen_image>a</gen_image>")
    _, written = await carried_out(engine, Work(Writing.TEXT_TO_IMAGE, "draw a fox", history=[Turn("hi", "hello")]))
    assert written.answer.dropped_turns == 0
    assert written.answer.prompt.dropped_turns is None


async def test_a_job_s_history_is_told_as_pictures_that_were_asked_for() -> None:
    history = [
        HistoryTurn(instruction="a house", prompt="a white house"),
        HistoryTurn(instruction="with a red roof", prompt="a white house with a red roof"),
    ]
    engine = Dialog("<gen_image>a</gen_image>")
    request = GenerationRequest(instruction="at night", history=tuple(history))
    await carried_out(engine, work_of(request, None))
    (shown,) = engine.shown
    user, assistant = "<|im_start|>user\n", "<|im_end|><|im_start|>assistant\n"
    again = "Generate the image again, with this change:"
    assert shown.endswith(
        f"{user}Generate an image of a house{assistant}<gen_image> a white house </gen_image><|im_end|>"
        f"{user}{again} with a red roof{assistant}<gen_image> a white house with a red roof </gen_image><|im_end|>"
        f"{user}{again} at night{assistant}"
    )


async def test_words_that_ask_for_a_picture_go_on_as_they_are() -> None:
    engine = Dialog("<gen_image>a</gen_image>")
    history = (HistoryTurn(instruction="画一座房子", prompt="a house"),)
    await carried_out(engine, work_of(GenerationRequest(instruction="make the sky darker", history=history), None))
    assert "user\n画一座房子<|im_end|>" in engine.shown[0]
    assert "user\nmake the sky darker<|im_end|>" in engine.shown[0]


async def test_a_talk_without_pictures_is_not_gone_on_with_as_one_with_them() -> None:
    engine = Dialog("<gen_image>a</gen_image>")
    await carried_out(engine, Work(Writing.TEXT_TO_IMAGE, "a fox", history=[Turn("hi", "hello")]))
    assert "Generate an image of a fox" in engine.shown[0]


async def test_the_renderer_s_room_is_told_to_the_model() -> None:
    engine = Dialog("<gen_image>a</gen_image>")
    await carried_out(engine, Work(Writing.TEXT_TO_IMAGE, "draw a fox", max_prompt_tokens=75))
    assert "at most 49 words" in engine.shown[0]


@pytest.mark.parametrize(
    ("fields", "picture", "expected"),
    [
        ({"instruction": "a fox"}, None, Writing.TEXT_TO_IMAGE),
        ({"instruction": "write a story"}, None, Writing.TEXT_TO_IMAGE),  # one picture is rendered
        ({"instruction": "write a story", "task": Task.PROMPT}, None, Writing.STORY),
        ({"instruction": "a fox", "task": Task.PROMPT}, None, Writing.TEXT_TO_IMAGE),
        ({"task": Task.SIMILAR, "image": "img_1"}, PICTURE, Writing.SIMILAR),
        ({"task": Task.PROMPT, "image": "img_1"}, PICTURE, Writing.SIMILAR),
        ({"task": Task.EDIT, "image": "img_1", "instruction": "at night"}, PICTURE, Writing.EDIT),
    ],
)
def test_a_job_s_request_says_what_is_to_be_written(
    fields: dict[str, object], picture: Picture | None, expected: Writing
) -> None:
    request = GenerationRequest.model_validate({"max_prompt_tokens": 75, **fields})
    work = work_of(request, picture)
    assert (work.writing, work.picture, work.max_prompt_tokens) == (expected, picture, 75)
