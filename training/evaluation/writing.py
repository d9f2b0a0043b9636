"""Language models that write for the figures: a published LLMGA folder in this process.

What is asked is put as in serving (`services.mllm.instructions`, conversation and tokenization), the weights are
converted as for serving, and answers are read with serving's parser. Only the engine is another: transformers,
greedy, in batches.
"""

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from services.diffusion.seams import Mask
from services.mllm.checkpoints import convert
from services.mllm.conversation import TEMPLATES, Turn
from services.mllm.generation_prompt import parse
from services.mllm.instructions import SOURCE_CAPTION, Writing, question
from services.mllm.pictures import picture_of
from services.mllm.tokenization import ImageSlot, PromptBuilder
from services.mllm.torchvision_schemas import register
from training.world.drawing import Pixels

BATCH = 32
MAX_NEW_TOKENS = 400
MAX_PROMPT_TOKENS = 2_048  # LLMGA's context (LLMGA.md §1.7)


@dataclass(frozen=True, slots=True, eq=False)
class Ask:
    """What the language model is to write. `hole` is blackened in the picture that it sees."""

    writing: Writing
    instruction: str = ""
    picture: Pixels | None = None
    hole: Mask | None = None


class Writer(Protocol):
    """Something that writes generation prompts."""

    def write(self, asks: Sequence[Ask]) -> list[str]:
        """Return the first prompt of each answer, or the answer where it is in words."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class _Conversation:
    turns: tuple[Turn, ...]
    picture: Pixels | None


class FolderWriter:
    """A checkpoint in the published layout, in this process."""

    def __init__(self, folder: Path, *, batch: int = BATCH) -> None:
        register()
        from transformers import AutoTokenizer, LlavaForConditionalGeneration
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()
        self._batch = batch
        with tempfile.TemporaryDirectory() as beside:
            converted = Path(beside) / "converted"
            facts = convert(folder, converted)
            self._tokenizer = AutoTokenizer.from_pretrained(converted)
            self._model = LlavaForConditionalGeneration.from_pretrained(converted, dtype=torch.float32).eval()
            self._normal = json.loads((converted / "preprocessor_config.json").read_text(encoding="utf-8"))
        self._facts = facts
        template = TEMPLATES[facts.family]
        added = self._tokenizer.added_tokens_decoder.values()
        self._prompts = PromptBuilder(
            self._tokenizer,
            template,
            control_tokens=[token.content for token in added if token.special],
            image_slot=ImageSlot(facts.image_token_id, facts.image_tokens),
            max_prompt_tokens=MAX_PROMPT_TOKENS,
            space_before=facts.space_before,
        )
        self._stop = [self._tokenizer.convert_tokens_to_ids(token) for token in template.stop]

    def write(self, asks: Sequence[Ask]) -> list[str]:
        """Return the first prompt of each answer."""
        seen = [None if ask.picture is None else _seen(ask.picture, ask.hole) for ask in asks]
        edits = [index for index, ask in enumerate(asks) if ask.writing is Writing.EDIT]
        sources = self._answers([_Conversation((Turn(SOURCE_CAPTION),), seen[index]) for index in edits])
        history = {index: (Turn(SOURCE_CAPTION, answer),) for index, answer in zip(edits, sources, strict=True)}
        answers = self._answers(
            [
                _Conversation(
                    (
                        *history.get(index, ()),
                        Turn(question(ask.writing, ask.instruction, has_picture=ask.picture is not None)),
                    ),
                    seen[index],
                )
                for index, ask in enumerate(asks)
            ]
        )
        return [
            answer if ask.writing is Writing.ANSWER else parse(answer).text
            for ask, answer in zip(asks, answers, strict=True)
        ]

    def _answers(self, conversations: Sequence[_Conversation]) -> list[str]:
        """Return the answers, written in batches of prompts that are about equally long."""
        prompts = [self._token_ids(conversation) for conversation in conversations]
        order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
        answers: dict[int, str] = {}
        with torch.inference_mode(), tqdm(total=len(prompts), desc="writing", unit="answers") as bar:
            for start in range(0, len(order), self._batch):
                batch = order[start : start + self._batch]
                pictures = [picture for index in batch if (picture := conversations[index].picture) is not None]
                written = self._generate([prompts[index] for index in batch], pictures)
                answers.update(zip(batch, written, strict=True))
                bar.update(len(batch))
        return [answers[index] for index in range(len(prompts))]

    def _token_ids(self, conversation: _Conversation) -> list[int]:
        ids = self._prompts.build(conversation.turns, has_image=conversation.picture is not None).token_ids
        image = self._facts.image_token_id
        return [id_ for token in ids for id_ in ([token] * self._facts.image_tokens if token == image else [token])]

    def _generate(self, prompts: Sequence[list[int]], pictures: Sequence[Pixels]) -> list[str]:
        longest = max(map(len, prompts))
        padding = [longest - len(prompt) for prompt in prompts]
        ids = torch.tensor([[self._stop[0]] * pad + prompt for pad, prompt in zip(padding, prompts, strict=True)])
        attention = torch.tensor([[0] * pad + [1] * (longest - pad) for pad in padding])
        options: dict[str, Any] = {}
        if pictures:
            options["pixel_values"] = torch.stack([self._pixel_values(picture) for picture in pictures])
        output = self._model.generate(
            input_ids=ids,
            attention_mask=attention,
            do_sample=False,
            max_new_tokens=MAX_NEW_TOKENS,
            eos_token_id=self._stop,
            pad_token_id=self._stop[0],
            suppress_tokens=[self._facts.image_token_id],
            **options,
        )
        answers: list[str] = self._tokenizer.batch_decode(output[:, longest:], skip_special_tokens=True)
        return answers

    def _pixel_values(self, pixels: Pixels) -> torch.Tensor:
        """Return what the tower sees of a square picture, as in serving: (3, side, side)."""
        side = self._facts.image_size_px
        small = Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC)
        values = np.asarray(small, np.float32) / 255
        values = (values - np.float32(self._normal["image_mean"])) / np.float32(self._normal["image_std"])
        return torch.from_numpy(values).permute(2, 0, 1)


def _seen(picture: Pixels, hole: Mask | None) -> Pixels:
    mask = None if hole is None else hole.astype(np.uint8) * np.uint8(255)
    return picture_of(picture, mask=mask).pixels
