"""What OpenAI's clients read of the image calls, with what else a job knows in fields of our own."""

from enum import StrEnum
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from gateway.openai.image_requests import Quality
from shared.contracts import Job, OutputFormat


class _Answer(BaseModel):
    model_config = ConfigDict(extra="forbid")


class TokenDetails(_Answer):
    """Tokens by what they stand for."""

    text_tokens: int
    image_tokens: int = 0


class ImageUsage(_Answer):
    """The tokens that were really counted: those read by the text encoder, and those written by the language model."""

    input_tokens: int = Field(description="Of the generation prompt, in the diffusion model's text encoder.")
    output_tokens: int = Field(description="That the language model wrote; 0 for a prompt of your own.")
    total_tokens: int
    input_tokens_details: TokenDetails
    output_tokens_details: TokenDetails

    @classmethod
    def of(cls, job: Job) -> Self:
        """Return what a finished job has used."""
        read = job.prompt.prompt_tokens or 0 if job.prompt else 0
        written = job.prompt.completion_tokens or 0 if job.prompt else 0
        return cls(
            input_tokens=read,
            output_tokens=written,
            total_tokens=read + written,
            input_tokens_details=TokenDetails(text_tokens=read),
            output_tokens_details=TokenDetails(text_tokens=written),
        )


class ImageData(_Answer):
    """One finished picture."""

    b64_json: str | None = Field(default=None, description="The file in base64.")
    url: str | None = Field(default=None, description="Where the file is, with `response_format: url`.")
    revised_prompt: str | None = Field(default=None, description="The generation prompt that was rendered.")
    id: str = Field(description="Ours: to refer to the picture in later requests.")
    seed: int = Field(description="Ours: the same seed and request give the same bytes.")


class ImagesAnswer(_Answer):
    """The answer of an image call."""

    created: int = Field(description="Unix time in seconds.")
    background: Literal["opaque"] = "opaque"
    data: list[ImageData]
    output_format: OutputFormat
    quality: Quality
    size: str
    usage: ImageUsage
    job_id: str = Field(description="Ours: `GET /v1/jobs/{id}` has everything about it.")


class Call(StrEnum):
    """The calls that stream, by the name that their events begin with."""

    GENERATION = "image_generation"
    EDIT = "image_edit"


class _ImageEvent(_Answer):
    type: str
    b64_json: str
    background: Literal["opaque"] = "opaque"
    created_at: int = Field(description="Unix time in seconds.")
    output_format: OutputFormat
    quality: Quality
    size: str = Field(description="Of the finished picture.")
    image_index: int = Field(description="Ours: which of the `n` pictures it is.")


class PartialImageEvent(_ImageEvent):
    """What a picture looks like on the way."""

    partial_image_index: int = Field(description="Counts from 0 for each picture.")


class CompletedEvent(_ImageEvent):
    """A finished picture."""

    usage: ImageUsage = Field(description="Of the whole call, with each of its pictures.")
    url: str
    revised_prompt: str | None = None
    id: str
    seed: int
    job_id: str
