"""Carrying out a task: one answer of the language model, or two for an edit.

What comes out is the same for jobs and for direct calls: the characters of the first generation prompt as they
come, then everything about the answer.
"""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace

from services.mllm.conversation import Turn
from services.mllm.generation_prompt import CLOSE_TAG, OPEN_TAG, Fallback
from services.mllm.instructions import PICTURES, SOURCE_CAPTION, Writing, question, wants_several
from services.mllm.pictures import Picture
from services.mllm.writing import Answer, PromptWriter, Sampling
from shared.contracts import GenerationPrompt, GenerationRequest, HistoryTurn, Task
from shared.errors import InternalError


@dataclass(frozen=True)
class Work:
    """What is to be written.

    picture: what the model looks at; for inpainting and outpainting already black where something is missing.
    history: earlier turns of the conversation, all answered.
    max_prompt_tokens: how long a prompt the diffusion model takes, in tokens of its text encoder.
    """

    writing: Writing
    instruction: str = ""
    picture: Picture | None = None
    history: Sequence[Turn] = ()
    max_prompt_tokens: int | None = None


@dataclass(frozen=True)
class Written:
    """What was written. `source` is the caption of the picture as it was, before an edit."""

    answer: Answer
    source: GenerationPrompt | None = None


def work_of(request: GenerationRequest, picture: Picture | None) -> Work:
    """Return what a job's request asks of the language model."""
    writing = Writing.TEXT_TO_IMAGE if picture is None else Writing.SIMILAR
    if request.task in (Task.INPAINT, Task.OUTPAINT, Task.EDIT):
        writing = Writing(request.task)
    # A picture job renders one prompt, so that only a job for prompts gains from more.
    if request.task is Task.PROMPT and wants_several(request.instruction):
        writing = Writing.STORY
    return Work(writing, request.instruction, picture, _told(request.history), request.max_prompt_tokens)


def _told(history: Sequence[HistoryTurn]) -> list[Turn]:
    """Return the turns before a request as they would have been, had this model been asked for each picture."""
    return [
        Turn(
            question(Writing.TEXT_TO_IMAGE, turn.instruction, goes_on=place > 0),
            f"{OPEN_TAG} {turn.prompt} {CLOSE_TAG}",
        )
        for place, turn in enumerate(history)
    ]


async def carry_out(
    writer: PromptWriter, work: Work, sampling: Sampling, *, request_id: str, priority: int
) -> AsyncGenerator[str | Written, None]:
    """Yield the prompt's characters as they come (of an answer in words: its text), then the whole.

    Closing the generator ends the request in the engine.

    Raises:
        PromptTooLong: the conversation does not fit the model.
        PromptEmpty: the answer holds no prompt.
    """
    history = list(work.history)
    source: GenerationPrompt | None = None
    if work.writing is Writing.EDIT:
        caption = await _answer(
            writer.write(
                [*history, Turn(SOURCE_CAPTION)],
                replace(sampling, logprobs=None),
                picture=work.picture,
                request_id=f"{request_id}-source",
                priority=priority,
            )
        )
        source = caption.prompt
        history.append(Turn(SOURCE_CAPTION, caption.text))
    goes_on = any(OPEN_TAG in (turn.answer or "") for turn in work.history)
    asked = Turn(
        question(
            work.writing,
            work.instruction,
            has_picture=work.picture is not None,
            goes_on=goes_on,
            max_prompt_tokens=work.max_prompt_tokens,
        )
    )
    is_change = work.writing is Writing.EDIT or (work.writing is Writing.TEXT_TO_IMAGE and goes_on)
    if work.writing in (Writing.STORY, Writing.ANSWER):
        sampling = replace(sampling, stop=())  # to its end
    if work.writing not in PICTURES or (is_change and writer.tells_changes):
        sampling = replace(sampling, opens=False)  # the answer may begin with words
    ask = writer.speak if work.writing is Writing.ANSWER else writer.write
    parts = ask([*history, asked], sampling, picture=work.picture, request_id=request_id, priority=priority)
    async with aclosing(parts):
        async for part in parts:
            if isinstance(part, Answer):
                yield Written(_as_asked(part, work.writing), source)
                return
            text = part if isinstance(part, str) else part.text
            if text:
                yield text


def _as_asked(answer: Answer, writing: Writing) -> Answer:
    """A description in words alone is no fallback where it was asked for."""
    if writing is Writing.DESCRIBE:
        answer.prompts = [
            prompt.model_copy(update={"fallback": None}) if prompt.fallback == Fallback.ANSWER else prompt
            for prompt in answer.prompts
        ]
    return answer


async def _answer(parts: AsyncGenerator[str | Answer, None]) -> Answer:
    async with aclosing(parts):
        async for part in parts:
            if isinstance(part, Answer):
                return part
    raise InternalError("The language model gave no answer.")
