"""What a direct call may ask of the language model, and the work that it stands for.

Here are all tasks that the model knows, also those whose pictures nothing renders yet: this interface is for
those who check a deployment, or bring a renderer of their own.
"""

from typing import Annotated, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from services.mllm.conversation import Turn
from services.mllm.instructions import Writing
from services.mllm.pictures import Picture, picture_of
from services.mllm.tasks import Work
from shared.contracts import Outpaint
from shared.contracts.chat import MAX_LOGPROBS
from shared.contracts.generation import (
    MAX_INSTRUCTION_CHARS,
    MAX_PROMPT_TOKENS,
    MAX_SEED,
    MIN_PROMPT_TOKENS,
    Count,
    Finite,
    Flag,
    Image,
    Words,
    meaningful,
    meaningful_or_empty,
)
from shared.media import check_canvas, check_mask, decode_image, extended, inline_bytes, mask_of

MAX_HISTORY_TURNS = 64
MAX_ANSWER_CHARS = 32_768

_NEEDS_PICTURE = frozenset({Writing.SIMILAR, Writing.INPAINT, Writing.OUTPAINT, Writing.EDIT})
_NEEDS_WORDS = frozenset({Writing.TEXT_TO_IMAGE, Writing.EDIT, Writing.STORY, Writing.ANSWER})

Text = Annotated[str, AfterValidator(meaningful)]


class _Taken(BaseModel):
    model_config = ConfigDict(extra="forbid")


class HistoryTurn(_Taken):
    """A turn of the conversation so far; `answer` as the model wrote it, tags included."""

    question: Text = Field(min_length=1, max_length=MAX_INSTRUCTION_CHARS)
    answer: Text = Field(min_length=1, max_length=MAX_ANSWER_CHARS)


class PromptRequest(_Taken):
    """What to write, about which picture, and how to sample it."""

    task: Writing = Writing.TEXT_TO_IMAGE
    instruction: Annotated[Words, AfterValidator(meaningful_or_empty)] = ""
    image: Image | None = None
    mask: Image | None = None
    outpaint: Outpaint | None = None
    history: list[HistoryTurn] = Field(default_factory=list, max_length=MAX_HISTORY_TURNS)
    max_prompt_tokens: Count | None = Field(default=None, ge=MIN_PROMPT_TOKENS, le=MAX_PROMPT_TOKENS)
    max_tokens: Count | None = Field(default=None, ge=1, le=4_096)
    temperature: Finite | None = Field(default=None, ge=0, le=2)
    top_p: Finite | None = Field(default=None, gt=0, le=1)
    seed: Count | None = Field(default=None, ge=0, le=MAX_SEED)
    return_token_ids: Flag = False
    logprobs: Count | None = Field(default=None, ge=0, le=MAX_LOGPROBS)

    @model_validator(mode="after")
    def _fits_the_task(self) -> Self:
        task = self.task
        if not self.instruction and (task in _NEEDS_WORDS or self.image is None):
            raise ValueError(f"task '{task}' needs an instruction")
        if task in _NEEDS_PICTURE and self.image is None:
            raise ValueError(f"task '{task}' needs an image")
        if task is Writing.TEXT_TO_IMAGE and self.image is not None:
            raise ValueError("task 'text_to_image' takes no image; 'similar' does")
        if (self.mask is not None) != (task is Writing.INPAINT):
            raise ValueError("task 'inpaint' needs a mask, and no other task takes one")
        if (self.outpaint is not None) != (task is Writing.OUTPAINT):
            raise ValueError("task 'outpaint' needs 'outpaint', and no other task takes it")
        return self

    def work(self) -> Work:
        """Return the work; decodes pictures, so it takes its time.

        Raises:
            InvalidImage: what is given is not a picture within the limits.
            InvalidRequest: the mask has another size than the picture or is black, or the canvas becomes too large.
        """
        return Work(
            self.task,
            self.instruction,
            self._picture(),
            [Turn(turn.question, turn.answer) for turn in self.history],
            self.max_prompt_tokens,
        )

    def _picture(self) -> Picture | None:
        if self.image is None:
            return None
        pixels = decode_image(inline_bytes(self.image))
        height, width, _ = pixels.shape
        if self.mask is not None:
            mask = mask_of(decode_image(inline_bytes(self.mask)))
            check_mask(mask, width, height)
            return picture_of(pixels, mask=mask)
        if self.outpaint is not None:
            check_canvas(width, height, self.outpaint)
            canvas, _ = extended(pixels, self.outpaint)  # black around the picture, as the mask would make it
            return picture_of(canvas)
        return picture_of(pixels)
