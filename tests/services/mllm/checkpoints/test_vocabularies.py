"""Tokenizers of every family's published files give the ids of training."""

import json
from pathlib import Path

import pytest
import sentencepiece
from tokenizers import Tokenizer

from services.mllm.checkpoints import CheckpointError
from services.mllm.checkpoints.families import ARCHITECTURES
from services.mllm.checkpoints.vocabularies import open_vocabulary
from services.mllm.conversation import TEMPLATES, Turn, render
from services.mllm.tokenization import encode
from tests.services.mllm.checkpoints.published import MODEL_TYPES, change_json, write_json
from tests.services.mllm.checkpoints.tokenizers_of import (
    LEGACY,
    FamilyTokenizer,
    by_the_sheet,
    sentencepiece_model,
    write_tokenizer,
)

FAMILIES = sorted(MODEL_TYPES)
QUESTIONS = [
    "What is this?",
    "  two spaces first, and one last ",
    "\n\nlines\n",
    "画一个红色的圆形,1234.5",
    "🦊 e\u0301 ▁ tab\t|",
    "it's <gen_image> a fox </gen_image>",
]


class AsConverted:
    """What is served, in the form that `encode` takes."""

    def __init__(self, folder: Path, family: str) -> None:
        self.vocabulary = open_vocabulary(folder, ARCHITECTURES[MODEL_TYPES[family]])
        self.tokenizer = Tokenizer.from_str(json.dumps(self.vocabulary.content))

    @property
    def bos_token_id(self) -> int | None:
        bos = self.vocabulary.parts.get("bos_token")
        return None if bos is None else self.vocabulary.tokens[bos]

    def encode(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text).ids)


def ids_of(converted: AsConverted, texts: list[str]) -> list[int]:
    return encode(converted, texts, 9_999, space_before=converted.vocabulary.space_before)


@pytest.mark.parametrize("has_image", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_ids_of_conversations_are_those_of_training(family: str, has_image: bool, tmp_path: Path) -> None:
    trained = write_tokenizer(tmp_path, family)
    converted = AsConverted(tmp_path, family)
    for question in QUESTIONS:
        turns = [Turn(question, "A cat."), Turn(question, question.strip()), Turn(question)]
        texts = render(TEMPLATES[family], turns, has_image=has_image)
        assert ids_of(converted, texts) == by_the_sheet(trained, "¶".join(texts), 9_999), question


def test_phi3_starts_with_the_space_that_its_slow_tokenizer_put_there(tmp_path: Path) -> None:
    trained = write_tokenizer(tmp_path, "phi3")
    converted = AsConverted(tmp_path, "phi3")
    assert ids_of(converted, ["<|user|>\nhi"])[:3] == [1, trained.tokens["▁"], trained.tokens["<|user|>"]]
    assert "<|endoftext|>" not in converted.vocabulary.space_before, "the slow form takes it back before this one"


def test_legacy_puts_a_space_after_every_marker_and_the_other_form_does_not(tmp_path: Path) -> None:
    ids = {}
    for family in ("mistral", "vicuna"):
        (tmp_path / family).mkdir()
        trained = write_tokenizer(tmp_path / family, family)
        ids[family] = ids_of(AsConverted(tmp_path / family, family), ["a</s>USER"])
        assert ids[family] == trained.encode("a</s>USER")
    assert ids["mistral"] != ids["vicuna"]


def test_a_slow_family_s_tokenizer_model_counts_and_not_the_fast_file_beside_it(tmp_path: Path) -> None:
    trained = write_tokenizer(tmp_path, "mistral")
    write_json(tmp_path / "tokenizer.json", {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}})
    converted = AsConverted(tmp_path, "mistral")
    assert converted.vocabulary.path.name == "tokenizer.model"
    assert converted.encode("hello there") == trained.encode("hello there")


def test_gemma_s_tokenizer_model_alone_is_enough(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece_model())
    write_json(tmp_path / "tokenizer_config.json", {"bos_token": "<s>", "eos_token": "</s>"})
    proto = sentencepiece.SentencePieceProcessor(model_proto=sentencepiece_model())
    converted = AsConverted(tmp_path, "gemma")
    # The dummy prefix of this model is not Gemma's: its own model has none, and neither has what is built.
    assert converted.encode("fox")[0] == 1
    assert converted.tokenizer.decode(converted.encode("a fox"), skip_special_tokens=True) == "a fox"
    assert proto.piece_to_id("▁") not in converted.encode("fox")


@pytest.mark.parametrize("family", sorted(LEGACY))
def test_what_sentencepiece_would_do_otherwise_is_refused(family: str, tmp_path: Path) -> None:
    trained: FamilyTokenizer = write_tokenizer(tmp_path, family)
    # A token that sentencepiece knows as a normal piece, given another id.
    change_json(
        tmp_path / "tokenizer_config.json",
        lambda settings: settings["added_tokens_decoder"].update(
            {str(trained.size): {"content": "▁a", "special": False}}
        ),
    )
    with pytest.raises(CheckpointError, match=r"tokenizer\.model: '▁a' has another id"):
        AsConverted(tmp_path, family)


def _model(**changes: object) -> bytes:
    from sentencepiece import sentencepiece_model_pb2 as messages

    proto = messages.ModelProto.FromString(sentencepiece_model())  # type: ignore[attr-defined]  # made by protoc
    for name, value in changes.items():
        spec, _, field = name.partition("__")
        setattr(getattr(proto, spec), field, value)
    return bytes(proto.SerializeToString())


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "not a sentencepiece model"),
        (b"\xff" * 500, "not a sentencepiece model"),
        (b"version https://git-lfs.github.com/spec/v1\n", "not a sentencepiece model"),
        (_model(trainer_spec__model_type=1), "byte-pair"),
        (_model(normalizer_spec__remove_extra_whitespaces=True), "changes texts"),
        (_model(normalizer_spec__precompiled_charsmap=b"x"), "changes texts"),
    ],
)
def test_another_or_damaged_tokenizer_model_is_refused(data: bytes, says: str, tmp_path: Path) -> None:
    write_tokenizer(tmp_path, "vicuna")
    (tmp_path / "tokenizer.model").write_bytes(data)
    with pytest.raises(CheckpointError, match=says) as caught:
        AsConverted(tmp_path, "vicuna")
    assert caught.value.path.name == "tokenizer.model"


def test_merges_of_another_vocabulary_are_refused(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, "qwen2")
    (tmp_path / "merges.txt").write_text("#version: 0.2\nno such\n")
    with pytest.raises(CheckpointError, match=r"merges\.txt"):
        AsConverted(tmp_path, "qwen2")
