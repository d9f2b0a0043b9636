"""From an item of the data to the conversation that is learned: LLMGA.md §7.2, drawn anew on each visit."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from services.mllm.conversation import Turn
from services.mllm.instructions import Writing, is_chinese, question
from services.mllm.pictures import Pixels, picture_of
from training.data.formats import Dialogue, Edit, Inpainting, Item, SimilarImage, TextToImage
from training.data.masks import MLLM_STAGE1, MaskSpec, draw_mask
from training.data.phrasings import CHINESE, ENGLISH, Pools
from training.data.pictures import SIDE, Shaping, load, shaped

DESCRIBED = 0.5  # of T2I items: the answer is text, and not the prompt of a picture
BEFORE = 0.5  # of T2I items: the request goes before the caption
REGENERATED = 0.7  # of SG items: a picture like it is asked for, and not its description


@dataclass(frozen=True)
class Conversation:
    """What is said, and the picture that goes with it: uint8 (h, w, 3)."""

    turns: tuple[Turn, ...]
    pixels: Pixels | None


@dataclass(frozen=True)
class Rules:
    """What differs between runs.

    side: pixels of stage 1's square. chinese: the share of requests about a picture that are put in Chinese; the
    published data have none, those of the `-cn-` checkpoints were not released.
    """

    shaping: Shaping = "stage1"
    side: int = SIDE
    chinese: float = 0.0

    @property
    def masks(self) -> MaskSpec:
        """Return the masks of stage 1 for pictures of this side."""
        return MLLM_STAGE1.scaled(self.side / SIDE)


def conversation_of(item: Item, generator: np.random.Generator, rules: Rules) -> Conversation:
    """Return the conversation that an item becomes this time.

    Raises:
        DataError: its picture cannot be used.
    """
    match item:
        case TextToImage():
            return Conversation((_text_to_image(item, generator),), None)
        case SimilarImage():
            pools = _pools(generator, rules)
            if generator.random() < REGENERATED:
                turn = Turn(_one_of(pools.similar, generator), generation(item.caption))
            else:
                turn = Turn(_one_of(pools.caption, generator), item.caption)
            return Conversation((turn,), _picture(item.image, rules))
        case Inpainting():
            return _inpainting(item, generator, rules)
        case Edit():
            turn = Turn(item.instruction, generation(item.new_caption))
            return Conversation((turn,), None if item.image is None else _picture(item.image, rules))
        case Dialogue():
            return Conversation(item.turns, None if item.image is None else _picture(item.image, rules))


def generation(caption: str) -> str:
    """Return a caption as a generation prompt (LLMGA.md §3)."""
    return f"<gen_image> {caption} </gen_image>"


def _text_to_image(item: TextToImage, generator: np.random.Generator) -> Turn:
    words = item.ori_caption
    pools = CHINESE if is_chinese(words) else ENGLISH
    described, before = generator.random() < DESCRIBED, generator.random() < BEFORE
    answer = item.caption if described else generation(item.caption)
    # The last of the ways is what serving puts around words that do not ask.
    if described:
        way = int(generator.integers(len(pools.enrich) + 1))
        if way == len(pools.enrich):
            return Turn(question(Writing.DESCRIBE, words), answer)
        if before:
            return Turn(pools.joined.format(pools.enrich[way], words), answer)
        return Turn(pools.joined.format(words, pools.enrich[way].replace("：", "。")), answer)
    if not before:
        return Turn(pools.joined.format(words, _one_of(pools.draw_behind, generator)), answer)
    way = int(generator.integers(len(pools.draw_before) + 1))
    if way == len(pools.draw_before):
        return Turn(question(Writing.TEXT_TO_IMAGE, words), answer)
    return Turn(pools.joined.format(pools.draw_before[way], words), answer)


def _inpainting(item: Inpainting, generator: np.random.Generator, rules: Rules) -> Conversation:
    pixels = _picture(item.image, rules)
    height, width = pixels.shape[:2]
    mask, kind = draw_mask(height, width, rules.masks, generator)
    pools = _pools(generator, rules)
    asked = _one_of(pools.outpaint if kind == "outpainting" else pools.inpaint, generator)
    return Conversation((Turn(asked, generation(item.caption)),), picture_of(pixels, mask=mask).pixels)


def _picture(image: Path | Pixels, rules: Rules) -> Pixels:
    path = image if isinstance(image, Path) else None
    return shaped(load(image), rules.shaping, path=path, side=rules.side)


def _pools(generator: np.random.Generator, rules: Rules) -> Pools:
    return CHINESE if generator.random() < rules.chinese else ENGLISH


def _one_of(wordings: Sequence[str], generator: np.random.Generator) -> str:
    return wordings[int(generator.integers(len(wordings)))]
