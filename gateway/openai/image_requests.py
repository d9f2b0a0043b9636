"""What OpenAI's clients ask of the image calls, and the request for pictures that it stands for.

Beside OpenAI's fields each call takes those of `GenerationRequest` that OpenAI has no name for (`seed`,
`num_inference_steps`, …): its clients send them as extra fields of the body. They are checked there and only there, so
that both APIs take the same.
"""

import json
from enum import StrEnum
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from shared.contracts import FieldProblem, GenerationRequest, OutputFormat, Task
from shared.contracts.generation import MAX_IMAGES, MAX_STEPS, Count, Flag
from shared.errors import InvalidRequest
from shared.validation import validation_problem

MAX_PARTIAL_IMAGES = 3  # OpenAI's bound
_MAX_NAME_CHARS = 512


class Quality(StrEnum):
    """How much work goes into a picture; the last two are the words of OpenAI's older models."""

    AUTO = "auto"
    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"
    XHIGH = "xhigh"
    MAX = "max"
    STANDARD = "standard"
    HD = "hd"

    @property
    def level(self) -> "Quality":
        """What it comes to: one of the five from `low` to `max`."""
        return _LEVELS.get(self, self)

    def steps(self, usual: int) -> int:
        """Return the steps for a model that usually takes `usual` of them."""
        return min(MAX_STEPS, max(1, round(usual * _WORK[self.level])))


_LEVELS = {Quality.AUTO: Quality.MEDIUM, Quality.STANDARD: Quality.MEDIUM, Quality.HD: Quality.HIGH}
_WORK = {Quality.LOW: 0.5, Quality.MEDIUM: 1.0, Quality.HIGH: 1.5, Quality.XHIGH: 2.0, Quality.MAX: 3.0}


class ResponseFormat(StrEnum):
    """How a finished picture comes back."""

    B64_JSON = "b64_json"
    URL = "url"


class Background(StrEnum):
    """What is behind a picture: never nothing."""

    AUTO = "auto"
    OPAQUE = "opaque"


class Moderation(StrEnum):
    """Taken because clients send it; there is no moderation to be turned down."""

    AUTO = "auto"
    LOW = "low"


Name = Annotated[str, Field(max_length=_MAX_NAME_CHARS)]


class ImageOptions(BaseModel):
    """What all image calls have in common. Further fields are those of `GenerationRequest`."""

    model_config = ConfigDict(extra="allow", frozen=True)

    model: str | None = Field(default=None, description="Diffusion model by name; the default one if left out.")
    n: Count | None = Field(default=None, ge=1, le=MAX_IMAGES, description="Pictures.")
    size: str | None = Field(default=None, description="`WIDTHxHEIGHT`, or `auto` for the model's own.")
    response_format: ResponseFormat | None = Field(default=None, description="`b64_json` if left out.")
    user: Name | None = Field(default=None, description="Taken and not looked at.")
    safety_identifier: Name | None = Field(default=None, description="Taken and not looked at.")

    @property
    def as_urls(self) -> bool:
        """Whether the pictures are to be named by their addresses."""
        return self.response_format is ResponseFormat.URL

    def generation_request(self, task: Task, **pictures: str) -> GenerationRequest:
        """Return the request for pictures; `pictures` holds the ids of `image` and `mask`.

        Raises:
            InvalidRequest: a field is unknown, of the wrong type or out of bounds; it is called by its name here.
        """
        extras = dict(self.model_extra or {})
        strangers = [name for name in extras if name in _NAMED_OTHERWISE]
        if strangers:
            raise InvalidRequest(
                f"The request was not accepted because of: {', '.join(strangers)}.",
                errors=[FieldProblem(field=name, code="unknown_field", message=_OTHERWISE) for name in strangers],
            )
        fields = {"task": task, **extras, **self._own_fields(), **pictures}
        try:
            # By way of JSON, so that the rules for types are those of the native call.
            return GenerationRequest.model_validate_json(json.dumps(fields), strict=True)
        except ValidationError as error:
            problem = validation_problem(error, GenerationRequest)
            raise InvalidRequest(problem.detail, errors=[_renamed(one) for one in problem.errors]) from None

    def _own_fields(self) -> dict[str, Any]:
        fields = {"model": self.model, "n": self.n, "size": None if self.size == "auto" else self.size}
        return {name: value for name, value in fields.items() if value is not None}


class VariationOptions(ImageOptions):
    """The fields of `POST /v1/images/variations` beside the picture."""

    prompt: str | None = Field(default=None, description="Ours: what is to be different.")

    def _own_fields(self) -> dict[str, Any]:
        fields = super()._own_fields()
        return fields if self.prompt is None else {**fields, "instruction": self.prompt}


class ImageBody(ImageOptions):
    """The fields of `POST /v1/images/generations`, and of `/edits` beside its pictures."""

    prompt: str = Field(description="What you want; the language model writes the generation prompt from it.")
    quality: Quality | None = Field(default=None, description="How many steps, in terms of the model's usual number.")
    output_format: OutputFormat | None = None
    output_compression: Count | None = Field(default=None, ge=0, le=100, description="Of `jpeg` and `webp`.")
    background: Background | None = None
    moderation: Moderation | None = None
    stream: Flag | None = None
    partial_images: Count | None = Field(
        default=None, ge=0, le=MAX_PARTIAL_IMAGES, description="Pictures on the way, with `stream`."
    )

    def _own_fields(self) -> dict[str, Any]:
        fields = {
            "instruction": self.prompt,
            "output_format": self.output_format,
            "output_compression": self.output_compression,
            "previews": self.partial_images if self.stream else None,
        }
        return super()._own_fields() | {name: value for name, value in fields.items() if value is not None}


_RENAMED = {"instruction": "prompt", "previews": "partial_images"}
_OTHERWISE = "is not a field of this call"
# Fields of the native call that have another name here, or that the call itself decides.
_NAMED_OTHERWISE = frozenset({*_RENAMED, "task", "image", "mask", "approve"})


def _renamed(problem: FieldProblem) -> FieldProblem:
    return problem.model_copy(update={"field": _RENAMED.get(problem.field, problem.field)})
