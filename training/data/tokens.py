"""The tokenizer of a checkpoint in training: read and used by the code of serving, so that both give the same ids."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from services.mllm.checkpoints import CheckpointError
from services.mllm.checkpoints.families import ARCHITECTURES
from services.mllm.checkpoints.vocabularies import open_vocabulary
from services.mllm.conversation import TEMPLATES
from services.mllm.tokenization import ImageSlot, PromptBuilder
from training.data.formats import DataError

IMAGE_ID = -200  # where the picture goes, as in the original (LLMGA.md §1.3); never embedded
MODEL_TYPES = {
    "vicuna": "llava_llama",
    "llama2": "llava_llama",
    "llama3": "llava_llama",
    "mistral": "llava_mistral",
    "qwen2": "llava_Qwen2",
    "phi3": "llava_Phi3",
    "gemma": "llava_gemma",
}  # LLMGA.md §1.1
_UNLIMITED = 1_000_000_000  # a conversation that is too long is cut at its end, by the collator; no turn is dropped
# Spelled as a marker: some families do not flag all of theirs as special.
_MARKER = re.compile(r"<[^\s<>]+>|\[[^\s\[\]]+\]")


@dataclass(frozen=True)
class CheckpointTokenizer:
    """A tokenizer as `services.mllm.tokenization` takes it."""

    tokenizer: Tokenizer
    bos_token_id: int | None

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, with a BOS where the family has one."""
        return list(self.tokenizer.encode(text).ids)


def prompt_builder(folder: Path, family: str) -> PromptBuilder:
    """Return the builder of conversations for the tokenizer in a base or LLMGA checkpoint.

    Raises:
        DataError: there is none that can be used.
    """
    try:
        vocabulary = open_vocabulary(folder, ARCHITECTURES[MODEL_TYPES[family]])
    except CheckpointError as error:
        raise DataError(str(error)) from None
    tokenizer = Tokenizer.from_str(json.dumps(vocabulary.content))
    bos = vocabulary.parts.get("bos_token")
    return PromptBuilder(
        CheckpointTokenizer(tokenizer, None if bos is None else vocabulary.tokens[bos]),
        TEMPLATES[family],
        control_tokens=[
            added.content
            for added in tokenizer.get_added_tokens_decoder().values()
            if added.special or _MARKER.fullmatch(added.content)
        ],
        image_slot=ImageSlot(IMAGE_ID, 1),
        max_prompt_tokens=_UNLIMITED,
        space_before=vocabulary.space_before,
    )
