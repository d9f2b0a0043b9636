"""What a chat client sends (OpenAI's chat completions), and the conversation that it stands for.

Only what this service can do is taken; everything else is refused by name, since a field that is ignored in
silence changes what the client believes it got. A picture comes as a data URI: nothing is ever fetched.
"""

import base64
import binascii
import re
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from services.mllm.conversation import Turn
from services.mllm.launch import MAX_LOGPROBS
from shared.contracts.generation import MAX_SEED, Finite
from shared.errors import InvalidImage, InvalidRequest

MAX_MESSAGES = 256
MAX_TEXT_CHARS = 32_768
MAX_PICTURE_CHARS = 24 * 1024 * 1024  # a file of 16 MiB in base64, and some
_DATA_URI = re.compile(r"data:image/(?:png|jpeg|jpg|webp);base64,", re.IGNORECASE)


class _Taken(BaseModel):
    model_config = ConfigDict(extra="forbid")


class TextPart(_Taken):
    """Words."""

    type: Literal["text"]
    text: str = Field(max_length=MAX_TEXT_CHARS)


class ImageURL(_Taken):
    """A picture as a data URI."""

    url: str = Field(max_length=MAX_PICTURE_CHARS)
    detail: Literal["auto", "low", "high"] = "auto"  # CLIP has one resolution


class ImagePart(_Taken):
    """A picture."""

    type: Literal["image_url"]
    image_url: ImageURL


UserPart = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class SystemMessage(_Taken):
    """Takes the place of the family's system prompt."""

    role: Literal["system", "developer"]
    content: Annotated[str, Field(max_length=MAX_TEXT_CHARS)] | list[TextPart]
    name: str | None = Field(default=None, max_length=64)


class UserMessage(_Taken):
    """What a person says and shows."""

    role: Literal["user"]
    content: Annotated[str, Field(max_length=MAX_TEXT_CHARS)] | list[UserPart]
    name: str | None = Field(default=None, max_length=64)


class AssistantMessage(_Taken):
    """What was answered before."""

    role: Literal["assistant"]
    content: Annotated[str, Field(max_length=MAX_TEXT_CHARS)] | list[TextPart]
    name: str | None = Field(default=None, max_length=64)
    refusal: None = None  # comes back with our own answers


Message = Annotated[SystemMessage | UserMessage | AssistantMessage, Field(discriminator="role")]


class StreamOptions(_Taken):
    """What a stream ends with."""

    include_usage: bool = False


Stop = Annotated[str, Field(min_length=1, max_length=256)]


class ChatRequest(_Taken):
    """The body of `POST /v1/chat/completions`."""

    messages: list[Message] = Field(min_length=1, max_length=MAX_MESSAGES)
    model: str = Field(min_length=1, max_length=256)
    max_tokens: int | None = Field(default=None, ge=1, le=4_096)
    max_completion_tokens: int | None = Field(default=None, ge=1, le=4_096)
    temperature: Finite | None = Field(default=None, ge=0, le=2)
    top_p: Finite | None = Field(default=None, gt=0, le=1)
    seed: int | None = Field(default=None, ge=0, le=MAX_SEED)
    stop: Stop | Annotated[list[Stop], Field(max_length=4)] | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=MAX_LOGPROBS)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = Field(default=None, max_length=512)
    # Clients send these with the values that change nothing.
    n: Literal[1] | None = None
    frequency_penalty: Literal[0] | None = None
    presence_penalty: Literal[0] | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        """The texts that end the answer."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def asked_logprobs(self) -> int | None:
        """How many alternatives per token; None for no log-probabilities at all."""
        return (self.top_logprobs or 0) if self.logprobs else None


@dataclass(frozen=True)
class Conversation:
    """Messages in the form that the language model knows; the last turn has no answer yet."""

    turns: list[Turn]
    system: str | None
    picture: bytes | None


def conversation_of(messages: list[Message]) -> Conversation:
    """Return the conversation of a request.

    Messages of one role in a row are one turn. The picture may come with any user message; the model sees it
    before the first question, as in training (LLMGA.md §2).

    Raises:
        InvalidRequest: the messages are no conversation that ends with a person's words.
        InvalidImage: the picture is no data URI, or there are several.
    """
    systems: list[str] = []
    questions: list[str] = []
    answers: list[str] = []
    pictures: list[str] = []
    turns: list[Turn] = []
    for message in messages:
        text = _text_of(message)
        if isinstance(message, SystemMessage):
            if questions or turns:
                raise InvalidRequest("A system message comes before all others.")
            systems.append(text)
            continue
        if isinstance(message, AssistantMessage):
            if not questions:
                raise InvalidRequest("An assistant's message follows a user's.")
            answers.append(text)
            continue
        if answers:
            turns.append(Turn("\n".join(questions), "\n".join(answers)))
            questions, answers = [], []
        questions.append(text)
        if isinstance(message.content, list):
            pictures += [part.image_url.url for part in message.content if isinstance(part, ImagePart)]
    if answers or not questions:
        raise InvalidRequest("The last message is the user's: it is what is answered.")
    if len(pictures) > 1:
        raise InvalidImage(f"The conversation has {len(pictures)} pictures; the model sees one.")
    turns.append(Turn("\n".join(questions)))
    return Conversation(turns, "\n".join(systems) if systems else None, _file_of(pictures[0]) if pictures else None)


def _text_of(message: SystemMessage | UserMessage | AssistantMessage) -> str:
    if isinstance(message.content, str):
        return message.content
    return "\n".join(part.text for part in message.content if isinstance(part, TextPart))


def _file_of(url: str) -> bytes:
    start = _DATA_URI.match(url)
    if start is None:
        raise InvalidImage(
            "The picture is not a data URI of a PNG, JPEG or WebP file.",
            next_step="Send `data:image/png;base64,…`: this server fetches no addresses.",
        )
    try:
        return base64.b64decode(url[start.end() :], validate=True)
    except (binascii.Error, ValueError):
        raise InvalidImage("The picture's data URI is not base64.") from None
