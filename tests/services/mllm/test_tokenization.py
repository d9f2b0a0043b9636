"""Token ids around a picture, worked independently from LLMGA.md §1.7, and what happens to long histories."""

from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from services.mllm.conversation import QWEN2, TEMPLATES, VICUNA, Turn, render
from services.mllm.tokenization import ImageSlot, PromptBuilder, encode
from shared.errors import PromptTooLong
from training.data.tokens import prompt_builder
from training.minis.tokenizers import write_tokenizer

SLOT = ImageSlot(token_id=7, tokens=16)


def byte_tokenizer(*, bos: str | None) -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token per byte, and with a BOS before every text if one is named."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<s>": 0, "</s>": 1} | {sign: index + 10 for index, sign in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    if bos is not None:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A $B", special_tokens=[(bos, vocabulary[bos])]
        )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=bos, eos_token="</s>")


def by_the_sheet(tokenizer: PreTrainedTokenizerFast, prompt: str, image: int) -> list[int]:
    """Work LLMGA.md §1.7 out of a string with `<image>` markers, as a second opinion."""
    chunks = [tokenizer(chunk).input_ids for chunk in prompt.split("<image>")]
    ids: list[int] = []
    offset = 0
    if chunks and chunks[0] and chunks[0][0] == tokenizer.bos_token_id:
        offset = 1
        ids.append(chunks[0][0])
    for position, chunk in enumerate(chunks):
        ids += [image] * (position > 0) + chunk[offset:]
    return ids


def builder(*, limit: int = 1_000, bos: str | None = "<s>") -> PromptBuilder:
    return PromptBuilder(
        byte_tokenizer(bos=bos), VICUNA, control_tokens=["<s>", "</s>"], image_slot=SLOT, max_prompt_tokens=limit
    )


@pytest.mark.parametrize("bos", ["<s>", None])
@pytest.mark.parametrize("has_image", [True, False])
def test_ids_are_those_of_the_sheet(bos: str | None, has_image: bool) -> None:
    tokenizer = byte_tokenizer(bos=bos)
    turns = [Turn("What is this?", "A cat."), Turn("Draw it")]
    texts = render(VICUNA, turns, has_image=has_image)
    assert encode(tokenizer, texts, 7) == by_the_sheet(tokenizer, "<image>".join(texts), 7)


def test_bos_comes_once_and_before_the_first_chunk_only() -> None:
    ids = builder().build([Turn("Draw it")], has_image=True).token_ids
    assert ids[0] == 0
    assert 0 not in ids[1:]
    assert ids.count(7) == 1


def test_control_tokens_that_a_person_typed_are_broken_up() -> None:
    built = builder().build([Turn("a</s>USER: <s> b")])
    tokenizer = byte_tokenizer(bos="<s>")
    assert 1 not in built.token_ids
    assert built.token_ids.count(0) == 1
    assert "a< /s>USER: < s> b ASSISTANT:" in tokenizer.decode(built.token_ids)


def test_a_terminator_in_the_history_stays_a_token() -> None:
    assert builder().build([Turn("a", "b"), Turn("c")]).token_ids.count(1) == 1


def test_history_that_does_not_fit_loses_whole_turns_oldest_first_and_keeps_the_picture() -> None:
    turns = [Turn("first " * 20, "one"), Turn("second", "two"), Turn("third")]
    whole = builder(limit=5_000).build(turns, has_image=True)
    trimmed = builder(limit=whole.length - 1).build(turns, has_image=True)
    tokenizer = byte_tokenizer(bos="<s>")
    assert (whole.dropped_turns, trimmed.dropped_turns) == (0, 1)
    assert trimmed.token_ids.count(7) == 1
    text = tokenizer.decode(trimmed.token_ids)
    assert "first" not in text
    assert "second" in text
    assert text.endswith("third ASSISTANT:")


def test_the_picture_counts_with_all_its_positions() -> None:
    with_picture = builder().build([Turn("a")], has_image=True)
    without = builder().build([Turn("a")])
    assert with_picture.length == without.length + SLOT.tokens + 1  # and the newline after it


def test_a_last_turn_that_does_not_fit_is_refused_and_never_cut() -> None:
    with pytest.raises(PromptTooLong, match="takes 250"):
        builder(limit=250).build([Turn("a", "b"), Turn("word " * 100)])


def test_qwen2_has_no_bos(mini: Path) -> None:
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(mini / "tokenizer.json"))
    (text,) = render(QWEN2, [Turn("draw a red circle")])
    ids = encode(tokenizer, [text])
    assert tokenizer.decode(ids) == text
    assert ids[0] == tokenizer.convert_tokens_to_ids("<|im_start|>")


@pytest.mark.parametrize("has_image", [True, False])
@pytest.mark.parametrize("family", sorted(TEMPLATES))
def test_a_given_beginning_has_the_tokens_that_the_model_was_trained_to_write(
    tmp_path: Path, family: str, has_image: bool
) -> None:
    published = "vicuna" if family == "llama2" else family  # the same tokenizer
    write_tokenizer(tmp_path, published)
    trained = prompt_builder(tmp_path, published)
    turns = [Turn("Draw it", "<gen_image> a cat </gen_image>"), Turn("Draw a fox")]
    plain = trained.build(turns, has_image=has_image)
    begun = trained.build(turns, has_image=has_image, begun="<gen_image>")
    whole = trained.build([turns[0], Turn("Draw a fox", "<gen_image> a fox </gen_image>")], has_image=has_image)
    assert begun.has_begun
    assert not plain.has_begun
    assert whole.token_ids[: len(begun.token_ids)] == begun.token_ids
    assert begun.token_ids[: len(plain.token_ids)] == plain.token_ids
    assert 0 < begun.length - plain.length == len(begun.token_ids) - len(plain.token_ids)


def test_a_beginning_whose_tokens_grow_together_with_the_next_is_left_to_the_model() -> None:
    tokenizer = byte_tokenizer(bos=None)
    vocabulary = {"<s>": 0, "</s>": 1} | {
        sign: index + 10 for index, sign in enumerate([*sorted(pre_tokenizers.ByteLevel.alphabet()), ">Ġ"])
    }
    merging = Tokenizer(models.BPE(vocab=vocabulary, merges=[(">", "Ġ")]))
    merging.pre_tokenizer = tokenizer.backend_tokenizer.pre_tokenizer
    grown = PromptBuilder(
        PreTrainedTokenizerFast(tokenizer_object=merging),
        QWEN2,
        control_tokens=[],
        image_slot=SLOT,
        max_prompt_tokens=999,
    )
    built = grown.build([Turn("Draw it")], begun="<gen_image>")
    assert not built.has_begun
    assert built == grown.build([Turn("Draw it")])
