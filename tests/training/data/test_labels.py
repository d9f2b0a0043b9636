"""Label masking against hand-worked cases: LLMGA.md §7.2, with tokenizers of each family's kind."""

import re
from pathlib import Path

import pytest

from services.mllm.conversation import TEMPLATES, Turn
from services.mllm.tokenization import ImageSlot, PromptBuilder
from tests.services.mllm.checkpoints.tokenizers_of import FamilyTokenizer, by_the_sheet, write_tokenizer
from training.data.formats import DataError
from training.data.labels import IGNORED, Labeled, labeled
from training.data.tokens import IMAGE_ID, MODEL_TYPES, prompt_builder

TURNS = [Turn("What is this?", "A red circle."), Turn("draw it", "<gen_image> A star. </gen_image>")]
PROMPT = "<gen_image> A star. </gen_image>"
SYSTEMS = {
    "vicuna": "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
    "detailed, and polite answers to the user's questions.",
    "llama3": "You are a helpful language and vision assistant. You are able to understand the visual content that the "
    "user provides, and assist the user with a variety of tasks using natural language.",
    "qwen2": "A conversation between a user and an LLM-based AI assistant. The assistant gives helpful and honest "
    "answers.",
    "llama2": "You are LLMGA, a useful language and vision generation assistant. You can generate images according to "
    "the user's requirements. If the user wants you to inpaint or outpaint images, please imagine what is in the black "
    "mask parts of the image. If image generation is required, please provide a detailed description of the generated "
    "images in the form of <gen_image> DETAILED DESCRIPTION </gen_image>.",
}
# ¶ stands where the picture is, what is learned is in ⟦⟧. §2 has the templates, §7.2 what is masked.
GOLDEN = {
    "vicuna": f"{SYSTEMS['vicuna']} USER: ¶\nWhat is this? ASSISTANT:⟦ A red circle.</s>⟧USER: draw it ASSISTANT:"
    f"⟦ {PROMPT}</s>⟧",
    "llama3": f"<|start_header_id|>system<|end_header_id|>\n\n{SYSTEMS['llama3']}<|eot_id|><|start_header_id|>user"
    "<|end_header_id|>\n\n¶\nWhat is this?<|eot_id|><|start_header_id|>system<|end_header_id|>\n\n"
    "⟦A red circle.<|eot_id|>⟧<|start_header_id|>user<|end_header_id|>\n\ndraw it<|eot_id|>"
    f"<|start_header_id|>system<|end_header_id|>\n\n⟦{PROMPT}<|eot_id|>⟧",
    "mistral": "[INST] <<SYS>>\n\n<</SYS>>\n\n¶\nWhat is this? [/INST]⟦ A red circle. </s>⟧<s>[INST] draw it [/INST]"
    f"⟦ {PROMPT} </s>⟧",
    "qwen2": f"<|im_start|>system\n{SYSTEMS['qwen2']}<|im_end|><|im_start|>user\n¶\nWhat is this?<|im_end|>"
    "<|im_start|>assistant\n⟦A red circle.<|im_end|>⟧<|im_start|>user\ndraw it<|im_end|><|im_start|>assistant\n"
    f"⟦{PROMPT}<|im_end|>⟧",
    "phi3": "<|user|>\n¶\nWhat is this?<|end|>\n<|assistant|>\n⟦A red circle.<|end|>⟧\n<|user|>\ndraw it<|end|>\n"
    f"<|assistant|>\n⟦{PROMPT}<|end|>⟧",
    "gemma": "<start_of_turn>user\n¶\nWhat is this?<end_of_turn>\n<start_of_turn>model\n"
    "⟦A red circle.<end_of_turn>\n<eos>⟧<start_of_turn>user\ndraw it<end_of_turn>\n<start_of_turn>model\n"
    f"⟦{PROMPT}<end_of_turn>\n<eos>⟧",
    "llama2": f"[INST] <<SYS>>\n{SYSTEMS['llama2']}\n<</SYS>>\n\n¶\nWhat is this? [/INST]⟦ A red circle. </s>⟧"
    f"<s>[INST] draw it [/INST]⟦ {PROMPT} </s>⟧",
}
BYTE_LEVEL = {"llama3", "qwen2"}


@pytest.fixture(scope="module", params=sorted(GOLDEN))
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def made(family: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[PromptBuilder, FamilyTokenizer]:
    folder = tmp_path_factory.mktemp(family)
    tokenizer = write_tokenizer(folder, family)
    return prompt_builder(folder, family), tokenizer


def runs(text: Labeled) -> list[list[int]]:
    found: list[list[int]] = []
    before = IGNORED
    for label in text.labels:
        if label != IGNORED and before == IGNORED:
            found.append([])
        if label != IGNORED:
            found[-1].append(label)
        before = label
    return found


def spelled(ids: list[int], tokenizer: FamilyTokenizer, family: str) -> str:
    names = {token_id: token for token, token_id in tokenizer.tokens.items()}
    text = "".join(names[token_id] for token_id in ids)
    if family in BYTE_LEVEL:
        return text.replace("Ġ", " ").replace("Ċ", "\n")
    return re.sub(r"<0x(..)>", lambda found: chr(int(found[1], 16)), text.replace("▁", " "))


def test_answers_and_their_terminators_are_learned(family: str, made: tuple[PromptBuilder, FamilyTokenizer]) -> None:
    builder, tokenizer = made
    text = labeled(builder, TURNS, has_image=True)
    golden = GOLDEN[family].replace("⟦", "").replace("⟧", "")
    assert text.ids == by_the_sheet(tokenizer, golden, IMAGE_ID)
    learned = [part.partition("⟧")[0] for part in GOLDEN[family].split("⟦")[1:]]
    assert [spelled(run, tokenizer, family) for run in runs(text)] == learned
    for token_id, label in zip(text.ids, text.labels, strict=True):
        assert label in (token_id, IGNORED)


def test_conversation_without_a_picture_learns_the_same(
    family: str, made: tuple[PromptBuilder, FamilyTokenizer]
) -> None:
    builder, _ = made
    with_picture, without = (labeled(builder, TURNS, has_image=has_image) for has_image in (True, False))
    assert runs(with_picture) == runs(without)
    assert IMAGE_ID not in without.ids


def test_markers_in_the_data_become_no_control_tokens(family: str, made: tuple[PromptBuilder, FamilyTokenizer]) -> None:
    builder, tokenizer = made
    end = {"vicuna": "</s>", "llama2": "</s>", "mistral": "</s>", "gemma": "<eos>", "phi3": "<|end|>"}
    terminator = end.get(family, "<|eot_id|>" if family == "llama3" else "<|im_end|>")
    text = labeled(builder, [Turn("Hi", f"so {terminator} it is")], has_image=False)
    assert text.is_learned
    assert runs(text)[0].count(tokenizer.tokens[terminator]) == 1


class Letters:
    """A tokenizer of letters that joins two newlines."""

    bos_token_id = None

    def encode(self, text: str) -> list[int]:
        return [ord(letter) for letter in text.replace("\n\n", "¦")]


def test_nothing_is_learned_where_the_text_grows_together_across_the_border() -> None:
    builder = PromptBuilder(
        Letters(),
        TEMPLATES["qwen2"],
        control_tokens=[],
        image_slot=ImageSlot(IMAGE_ID, 1),
        max_prompt_tokens=10_000,
    )
    assert labeled(builder, [Turn("Hi", "A cat.")], has_image=False).is_learned
    text = labeled(builder, [Turn("Hi", "\nA cat.")], has_image=False)  # a newline goes before it
    assert not text.is_learned
    assert set(text.labels) == {IGNORED}


def test_every_family_has_a_golden_case() -> None:
    assert sorted(GOLDEN) == sorted(MODEL_TYPES)


def test_missing_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"tokenizer\.json: it is missing"):
        prompt_builder(tmp_path, "qwen2")
