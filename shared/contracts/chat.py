"""What chat clients send: OpenAI's chat completions, as far as the language model can do what they say.

Everything else is refused by name, since a field that is ignored in silence changes what the client believes it got.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from shared.contracts.generation import MAX_IMAGES, MAX_SEED, Finite

MAX_MESSAGES = 256
MAX_TEXT_CHARS = 32_768
MAX_PICTURE_CHARS = 24 * 1024 * 1024  # a file of 16 MiB in base64, and some
MAX_LOGPROBS = 20  # per generated token, for those who check a deployment


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
    """What was answered before. Clients send back whole messages, so that their empty fields are taken."""

    role: Literal["assistant"]
    content: Annotated[str, Field(max_length=MAX_TEXT_CHARS)] | list[TextPart]
    name: str | None = Field(default=None, max_length=64)
    refusal: None = None
    audio: None = None
    function_call: None = None
    tool_calls: None = None
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None
    images: Annotated[list[dict[str, Any]], Field(max_length=MAX_IMAGES)] | None = Field(
        default=None, description="The pictures of an answer of ours; the language model does not see them again."
    )


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
