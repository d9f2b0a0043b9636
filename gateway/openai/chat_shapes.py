"""What a chat client sends to the gateway, what is passed on of it, and what comes back."""

import asyncio
import json
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gateway.pictures import Pictures
from shared.contracts import FieldProblem, GenerationRequest, PromptMode
from shared.contracts.chat import AssistantMessage, ChatRequest, ImagePart, ImageURL, UserMessage
from shared.contracts.generation import Flag
from shared.errors import InvalidImage, InvalidRequest
from shared.media import inline_text
from shared.validation import validation_problem

# What the chat decides itself, or what would leave nothing to show in the answer.
_NOT_OPTIONS = frozenset({"task", "instruction", "prompt_mode", "image", "mask", "outpaint", "approve", "previews"})
_FIRST_PROMPT = "a picture"  # stands for what is not written yet, while the options are checked


class ChatBody(ChatRequest):
    """The body of `POST /v1/chat/completions`: OpenAI's, and `render`."""

    render: Flag | dict[str, Any] | None = Field(
        default=None,
        description="Ours: render the generation prompt of the answer, if there is one. `true`, or an object with "
        "fields of `GenerationRequest`: `model`, `size`, `seed`, …",
        examples=[True, {"size": "512x512", "seed": 7}],
    )

    def rendering(self, prompt: str = _FIRST_PROMPT) -> GenerationRequest | None:
        """Return the request that renders a prompt; None where nothing is to be rendered.

        Raises:
            InvalidRequest: `render` has a field that is unknown, not for it, of the wrong type or out of bounds.
        """
        if self.render is None or self.render is False:
            return None
        options = {} if self.render is True else self.render
        problems = [
            FieldProblem(field=f"render.{name}", code="unknown_field", message="is not a field of `render`")
            for name in options
            if name in _NOT_OPTIONS
        ]
        fields = {**options, "instruction": prompt, "prompt_mode": PromptMode.VERBATIM}
        try:
            wanted = GenerationRequest.model_validate_json(json.dumps(fields), strict=True)
        except ValidationError as error:
            found = validation_problem(error, GenerationRequest).errors
            problems += [one.model_copy(update={"field": f"render.{one.field}"}) for one in found]
        if problems:
            raise InvalidRequest("The request was not accepted because of: render.", errors=problems)
        return wanted

    async def passed_on(self, pictures: Pictures) -> bytes:
        """Return the body for a language model: without what is ours, with its picture made plain.

        Raises:
            InvalidImage: the picture is none, or exceeds a limit; or there are several.
        """
        messages: list[Any] = []
        parts: list[ImagePart] = []
        for message in self.messages:
            if isinstance(message, AssistantMessage):
                message = message.model_copy(update={"images": None})
            elif isinstance(message, UserMessage) and not isinstance(message.content, str):
                parts += [part for part in message.content if isinstance(part, ImagePart)]
            messages.append(message)
        if len(parts) > 1:
            raise InvalidImage(f"The conversation has {len(parts)} pictures; the model sees one.")
        for part in parts:
            plain = await pictures.plain(part.image_url.url)
            text = await asyncio.to_thread(inline_text, plain)
            part.image_url = ImageURL(url="data:image/png;base64," + text)
        passed_on = self.model_copy(update={"messages": messages})
        return await asyncio.to_thread(_json, passed_on)


def _json(body: ChatBody) -> bytes:
    return body.model_dump_json(exclude_none=True, exclude={"render"}).encode()


class _Answer(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ChatMessage(_Answer):
    """What the language model says."""

    role: Literal["assistant"]
    content: str
    refusal: None = None
    images: list[dict[str, Any]] | None = Field(
        default=None,
        description="Ours, with `render`: `image_url.url` is the picture as a data URI; beside it `url`, `id`, `seed`, "
        "`job_id`, `revised_prompt`.",
    )


class ChatChoice(_Answer):
    """The one answer that there is."""

    index: Literal[0]
    message: ChatMessage
    logprobs: dict[str, Any] | None = None
    finish_reason: Literal["stop", "length"]


class ChatUsage(_Answer):
    """Tokens of the language model."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class ChatCompletion(_Answer):
    """A whole answer."""

    id: str
    object: Literal["chat.completion"]
    created: int = Field(description="Unix time in seconds.")
    model: str
    choices: list[ChatChoice]
    usage: ChatUsage
    generation_prompts: list[str] | None = Field(
        default=None, description="Ours: the descriptions of pictures in the answer, ready to be rendered."
    )
