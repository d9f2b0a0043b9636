from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from services.mllm.conversation import QWEN2, Turn, render
from services.mllm.generation_prompt import parse
from services.mllm.instructions import SOURCE_CAPTION, Writing, question
from services.mllm.pictures import picture_of
from services.mllm.tokenization import encode
from tests.services.mllm.reference import Reference
from training.data.tokens import CheckpointTokenizer, prompt_builder
from training.evaluation.writing import Ask, FolderWriter
from training.world import draw, sample_scene
from training.world.drawing import Pixels

PICTURE = draw(sample_scene(1))
STEPS = 24
IMAGE = -200


@pytest.fixture(scope="module")
def writer(mllm: Path) -> FolderWriter:
    return FolderWriter(mllm, batch=4)


class Greedy:
    """The original's way to write, token by token, over the unconverted weights."""

    def __init__(self, folder: Path) -> None:
        self._reference = Reference(folder, "qwen2")
        tokenizer = prompt_builder(folder, "qwen2")._tokenizer
        assert isinstance(tokenizer, CheckpointTokenizer)
        self._tokenizer = tokenizer
        self._stop = {tokenizer.tokenizer.token_to_id(token) for token in QWEN2.stop}

    def answer(self, turns: Sequence[Turn], pixels: Pixels | None) -> str:
        """Return the first tokens of the answer as text."""
        prompt = encode(self._tokenizer, render(QWEN2, turns, has_image=pixels is not None), IMAGE)
        written: list[int] = []
        for _ in range(STEPS):
            logs = self._reference.log_probabilities(prompt, [*written, 0], image_id=IMAGE, pixels=pixels)
            token = int(logs[len(written)].argmax())
            if token in self._stop:
                break
            written.append(token)
        return str(self._tokenizer.tokenizer.decode(written))


@pytest.fixture(scope="module")
def greedy(mllm: Path) -> Greedy:
    return Greedy(mllm)


def test_answers_are_those_of_the_unconverted_weights(writer: FolderWriter, greedy: Greedy) -> None:
    asks = [
        Ask(Writing.ANSWER, "draw a snowman at night"),
        Ask(Writing.ANSWER, "what is this?", PICTURE),
        Ask(Writing.ANSWER, "请画一个圆形，左边还有一个三角形"),
    ]
    with torch.inference_mode():
        expected = [
            greedy.answer([Turn(ask.instruction)], None if ask.picture is None else picture_of(ask.picture).pixels)
            for ask in asks
        ]
    for answer, beginning in zip(writer.write(asks), expected, strict=True):
        assert beginning
        assert answer.startswith(beginning.rstrip("\ufffd"))


def test_edit_is_asked_in_two_turns(writer: FolderWriter, greedy: Greedy) -> None:
    (source,) = writer.write([Ask(Writing.ANSWER, SOURCE_CAPTION, PICTURE)])
    turns = [Turn(SOURCE_CAPTION, source), Turn("make the roof red")]
    with torch.inference_mode():
        expected = parse(greedy.answer(turns, picture_of(PICTURE).pixels)).text.rstrip("\ufffd")
    (edited,) = writer.write([Ask(Writing.EDIT, "make the roof red", PICTURE)])
    assert expected
    assert edited.startswith(expected)


def test_company_and_order_change_nothing(writer: FolderWriter) -> None:
    asks = [Ask(Writing.TEXT_TO_IMAGE, words) for words in ("a cat", "a red star and two blue hearts", "一个雪人")]
    asks.append(Ask(Writing.SIMILAR, picture=PICTURE))
    alone = [writer.write([ask])[0] for ask in asks]
    assert writer.write(asks) == alone
    assert writer.write(asks[::-1]) == alone[::-1]


def test_bare_requests_are_put_as_in_serving(writer: FolderWriter) -> None:
    bare = writer.write([Ask(Writing.TEXT_TO_IMAGE, "a house")])[0]
    asked = writer.write([Ask(Writing.ANSWER, question(Writing.TEXT_TO_IMAGE, "a house"))])[0]
    assert bare == parse(asked).text


def test_hole_is_black_for_the_model(writer: FolderWriter) -> None:
    hole = np.zeros((128, 128), np.bool_)
    hole[:64] = True
    black = PICTURE.copy()
    black[hole] = 0
    first, second = writer.write(
        [Ask(Writing.INPAINT, picture=PICTURE, hole=hole), Ask(Writing.INPAINT, picture=black)]
    )
    assert first == second
