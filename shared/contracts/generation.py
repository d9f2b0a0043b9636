"""The generation request: what a client may ask for, with every bound that holds at the edge.

Field names are those of diffusers and of OpenAI's images API. Values that the client left out stay `None` here; the
gateway fills them from the defaults that the serving worker announces, so that a job record is complete.
"""

import re
from enum import StrEnum
from typing import Annotated, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    Strict,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from shared.contracts.webhooks import Webhook

MAX_INSTRUCTION_CHARS = 8_000  # about 2,000 tokens, LLMGA's context (LLMGA.md §1.7)
MAX_HISTORY_TURNS = 16  # more than the language model's context holds
MAX_STEPS = 150
MAX_CLIP_SKIP = 4
MAX_IMAGES = 8
MAX_ADAPTERS = 4
MAX_ADAPTER_WEIGHT = 4.0  # sliders are used up to about 3; beyond, pictures fall apart
MAX_PREVIEWS = 8
MAX_SIDE_PX = 2_048  # a worker announces its own, smaller limit
MIN_SIDE_PX = 64
SIDE_MULTIPLE_PX = 8  # one latent is 8 px wide (SD1.5 and SDXL VAEs)
MAX_SEED = 2**53 - 1  # exact in JSON numbers of every client
MAX_DEADLINE_S = 86_400.0
MAX_IMAGE_CHARS = 23_000_000  # a file of 16 MiB in base64, and the head of a data URI
MAX_EXTENSION_PX = MAX_SIDE_PX  # beyond one edge; the whole picture keeps within the limits of pictures, too
DEFAULT_FEATHER_PX, MAX_FEATHER_PX = 8, 128
MIN_PROMPT_TOKENS, MAX_PROMPT_TOKENS = 16, 1_024
MIN_EDIT_STRENGTH = 0.2  # of 1,000 timesteps: more than MAX_STEPS are left to step on
DEFAULT_EDIT_STRENGTH, DEFAULT_SOURCE_GUIDANCE_SCALE = 0.75, 3.5  # LLMGA.md §4


class Task(StrEnum):
    """What is to be made."""

    TEXT_TO_IMAGE = "text_to_image"
    SIMILAR = "similar"
    INPAINT = "inpaint"
    OUTPAINT = "outpaint"
    EDIT = "edit"
    PROMPT = "prompt"


class PromptMode(StrEnum):
    """Whether the MLLM writes the generation prompt or the instruction is the prompt."""

    REFINE = "refine"
    VERBATIM = "verbatim"


class PromptEncoding(StrEnum):
    """How a prompt becomes embeddings: LLMGA's long form (LLMGA.md §5) or the 77 tokens of stock diffusers."""

    LLMGA = "llmga"
    STOCK = "stock"


class Lane(StrEnum):
    """Queue lane: interactive work goes before batch work, batch work ages."""

    INTERACTIVE = "interactive"
    BATCH = "batch"


class OutputFormat(StrEnum):
    """File format of the pictures."""

    PNG = "png"
    JPEG = "jpeg"
    WEBP = "webp"

    @property
    def media_type(self) -> str:
        """The format's media type, for example `image/png`."""
        return f"image/{self.value}"


class Scheduler(StrEnum):
    """The solvers offered, each a diffusers scheduler."""

    DDIM = "ddim"
    PNDM = "pndm"
    EULER = "euler"
    EULER_ANCESTRAL = "euler_ancestral"
    DPMPP_2M = "dpmpp_2m"
    DPMPP_2M_KARRAS = "dpmpp_2m_karras"
    DPMPP_2M_SDE = "dpmpp_2m_sde"
    UNIPC = "unipc"
    LCM = "lcm"
    HEUN = "heun"


EDIT_SCHEDULER = Scheduler.DPMPP_2M_SDE  # can be inverted (LLMGA.md §5.4)


class Restore(StrEnum):
    """Whether a restoration network finishes what was painted in part: where there is one, always, or never."""

    AUTO = "auto"
    ON = "on"
    OFF = "off"


_SIZE = re.compile(r"([1-9][0-9]{1,4})x([1-9][0-9]{1,4})")


def parse_size(size: str) -> tuple[int, int]:
    """Return (width, height) in pixels of a `WxH` string.

    Raises:
        ValueError: the string is not `WxH`, a side is out of bounds or not a multiple of 8.
    """
    match = _SIZE.fullmatch(size)
    if match is None:
        raise ValueError("size must be WIDTHxHEIGHT in pixels, for example 512x512")
    width, height = int(match[1]), int(match[2])
    for side in (width, height):
        if not MIN_SIDE_PX <= side <= MAX_SIDE_PX:
            raise ValueError(f"both sides must be between {MIN_SIDE_PX} and {MAX_SIDE_PX} pixels")
        if side % SIDE_MULTIPLE_PX:
            raise ValueError(f"both sides must be multiples of {SIDE_MULTIPLE_PX} pixels")
    return width, height


def _checked_size(size: str) -> str:
    parse_size(size)
    return size


def _rising(interval: tuple[float, float]) -> tuple[float, float]:
    if interval[0] >= interval[1]:
        raise ValueError("must be two rising numbers, for example [0.0, 0.8]")
    return interval


def _without_nul(text: str) -> str:
    if "\x00" in text:
        raise ValueError("must not contain the NUL character")
    return text


def meaningful(text: str) -> str:
    """Return a text that a person wrote, if it says something.

    Raises:
        ValueError: nothing in it can be seen, or it holds a NUL character.
    """
    if not any(character.isprintable() and not character.isspace() for character in text):
        raise ValueError("must contain at least one visible character")
    return _without_nul(text)


def meaningful_or_empty(text: str) -> str:
    """Return a text that a person may also have left out.

    Raises:
        ValueError: as for `meaningful`.
    """
    return meaningful(text) if text else text


Size = Annotated[str, AfterValidator(_checked_size), Field(examples=["512x512"])]
Words = Annotated[str, Field(max_length=MAX_INSTRUCTION_CHARS)]
Image = Annotated[str, Field(min_length=1, max_length=MAX_IMAGE_CHARS)]
# Strict: neither "3" nor true is a number, and "yes" is no truth value, whoever might mean one.
Count = Annotated[int, Strict()]
Finite = Annotated[float, Strict(), Field(allow_inf_nan=False)]
Flag = Annotated[bool, Strict()]
Share = Annotated[float, Strict(), Field(ge=0, le=1, allow_inf_nan=False)]
Extension = Annotated[int, Strict(), Field(ge=0, le=MAX_EXTENSION_PX)]
Interval = Annotated[tuple[Share, Share], AfterValidator(_rising)]


class Outpaint(BaseModel):
    """By how many pixels a picture is extended beyond each of its edges."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    left: Extension = 0
    top: Extension = 0
    right: Extension = 0
    bottom: Extension = 0

    @model_validator(mode="after")
    def _extends(self) -> Self:
        if not (self.left or self.top or self.right or self.bottom):
            raise ValueError("must extend the picture by a pixel at least")
        return self


class Adapter(BaseModel):
    """A LoRA adapter that is put into force, by the name that its operator gave it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, Field(min_length=1, max_length=128)]
    weight: Finite = Field(
        default=1.0,
        ge=-MAX_ADAPTER_WEIGHT,
        le=MAX_ADAPTER_WEIGHT,
        description="1 is as it was trained; 0 is without it.",
    )


def _of_different_names(adapters: tuple[Adapter, ...]) -> tuple[Adapter, ...]:
    if len({adapter.name for adapter in adapters}) < len(adapters):
        raise ValueError("must name each adapter once")
    return adapters


class HistoryTurn(BaseModel):
    """An earlier turn of the conversation that a request goes on from: what was asked for, and the prompt it led to."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    instruction: Annotated[Words, AfterValidator(meaningful)]
    prompt: Annotated[Words, AfterValidator(meaningful)]


class GenerationFields(BaseModel):
    """What can be said of a picture, each field by itself; what makes sense together is up to the kind of request."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    task: Task = Task.TEXT_TO_IMAGE
    image: Image | None = Field(
        default=None,
        validate_default=True,
        description="A picture that the language model looks at, and that is painted in part, extended or edited: the "
        "id of an uploaded or finished one, or a PNG, JPEG or WebP file in base64 or as a data URI. Addresses are not "
        "fetched.",
        examples=["img_3b5d5c3712955042212316173ccf37be80ac3f51"],
    )
    mask: Image | None = Field(
        default=None,
        validate_default=True,
        description="Of an `inpaint`: a picture of the image's size, given like `image`, white where it is painted "
        "anew. From a brightness of 125 on a pixel is painted; shades are kept where the new picture meets the old. Of "
        "an `edit`: where the image may change; found by the diffusion model if it is left out.",
    )
    outpaint: Outpaint | None = Field(
        default=None,
        validate_default=True,
        description="Of an `outpaint`: by how many pixels the image is extended.",
        examples=[{"left": 64, "right": 64}],
    )
    feather_px: Count = Field(
        default=DEFAULT_FEATHER_PX,
        ge=0,
        le=MAX_FEATHER_PX,
        description="How far what is painted is blended into the image. Beyond it, every pixel that is black in the "
        "mask keeps its bits.",
    )
    restore: Restore = Field(
        default=Restore.AUTO,
        description="Of an `inpaint` or `outpaint`: whether a network takes seams and color steps away. `auto`: where "
        "the renderer has one, and again over the band of `feather_px` where a seam is left; without one, what is "
        "painted is blended in. `on`: once, exactly within the mask. `off`: blended in.",
    )
    strength: Finite | None = Field(
        default=None,
        gt=0,
        le=1,
        description="Share of the steps that are made, from the image on: the less, the closer to it. `inpaint` uses 1 "
        "if it is left out; `similar` then starts from noise, and follows the image by its caption alone.",
        examples=[0.8],
    )
    edit_strength: Finite | None = Field(
        default=None,
        ge=MIN_EDIT_STRENGTH,
        le=1,
        description="Of an `edit`: how far the image is taken back into noise before it is made anew, as a share; 0.75 "
        "if it is left out (LLMGA's `skip` is what is missing to 1). The less, the closer to the image.",
        examples=[0.6],
    )
    source_guidance_scale: Finite | None = Field(
        default=None,
        ge=0,
        le=30,
        description="Of an `edit`: how strictly the image's own caption is followed on the way into noise; if it is "
        "left out, 3.5, or the model's own guidance where that is lower.",
    )
    keep_unmasked: Flag = Field(
        default=True,
        description="Of an `edit`: what its mask leaves out goes back the way that it came, and stays as it is. "
        "`false`: it is sampled without a prompt, as LLMGA was released, and drifts.",
    )
    source_prompt: Annotated[Words, AfterValidator(meaningful_or_empty)] = Field(
        default="",
        description="Of an `edit` that is `verbatim`, and required there: the caption of the image as it is. Otherwise "
        "the language model writes it.",
        examples=["a red house on a hill"],
    )
    # The bound comes before the look at the text: a megabyte of blanks is not searched for something visible.
    instruction: Annotated[Words, AfterValidator(meaningful_or_empty)] = Field(
        default="",
        validate_default=True,
        description="What you want, in your own words; English or Chinese. Required without an `image`.",
        examples=["draw a snowman at night"],
    )
    history: tuple[HistoryTurn, ...] = Field(
        default=(),
        max_length=MAX_HISTORY_TURNS,
        description="The conversation so far, oldest turn first, for the language model to go on from. Where it does "
        "not fit, whole turns are left out, oldest first.",
        examples=[[{"instruction": "draw a house", "prompt": "a small white house with a blue roof"}]],
    )
    prompt_mode: PromptMode = Field(
        default=PromptMode.REFINE,
        description="`refine`: the language model writes the generation prompt. "
        "`verbatim`: the instruction is used as it is.",
    )
    approve: Flag = Field(
        default=False,
        description="Hold the job after the prompt is written, until it is approved (or edited) or canceled.",
    )
    negative_prompt: Annotated[Words, AfterValidator(_without_nul)] = ""
    model: str | None = Field(default=None, min_length=1, max_length=128, description="Diffusion model by name.")
    size: Size | None = Field(
        default=None,
        description="`WIDTHxHEIGHT` in pixels; the model's own size if left out. Of an `inpaint` or `outpaint` it is "
        "the size at which the painted region is rendered; the picture has the image's size, and its extension.",
    )
    adapters: Annotated[tuple[Adapter, ...], AfterValidator(_of_different_names)] = Field(
        default=(),
        max_length=MAX_ADAPTERS,
        description="LoRA adapters of the model that are in force together; `/v1/models` lists those that it has.",
        examples=[[{"name": "watercolor", "weight": 0.8}]],
    )
    n: Count = Field(default=1, ge=1, le=MAX_IMAGES, description="Pictures; the i-th is made with `seed + i`.")
    seed: Count | None = Field(default=None, ge=0, le=MAX_SEED - MAX_IMAGES, description="Drawn at random if left out.")
    num_inference_steps: Count | None = Field(default=None, ge=1, le=MAX_STEPS)
    guidance_scale: Finite | None = Field(default=None, ge=0, le=30)
    guidance_rescale: Finite = Field(
        default=0,
        ge=0,
        le=1,
        description="How far guidance's change of contrast is taken back (Lin et al. 2023); 0: not at all.",
    )
    guidance_interval: Interval = Field(
        default=(0.0, 1.0),
        description="Share of the steps that are guided, `[from, to]`; the others follow the prompt unguided and cost "
        "half (Kynkäänniemi et al. 2024).",
        examples=[[0.0, 0.8]],
    )
    clip_skip: Count = Field(
        default=0, ge=0, le=MAX_CLIP_SKIP, description="Last layers of the text encoder that are left out."
    )
    scheduler: Scheduler | None = None
    prompt_encoding: PromptEncoding = PromptEncoding.LLMGA
    max_prompt_tokens: Count | None = Field(
        default=None,
        ge=MIN_PROMPT_TOKENS,
        le=MAX_PROMPT_TOKENS,
        description="The language model is asked for a prompt of at most this many tokens of the diffusion model's "
        "text encoder; as many as that takes if left out.",
    )
    lane: Lane = Lane.INTERACTIVE
    deadline_s: Finite | None = Field(
        default=None,
        gt=0,
        le=MAX_DEADLINE_S,
        description="Do not start this job later than this many seconds from now.",
    )
    deterministic: Flag = Field(
        default=True, description="The same request gives the same bytes whoever shares the batch."
    )
    webhook: Webhook | None = Field(
        default=None, description="Where events of the job are sent, signed; only to hosts that the operator allows."
    )
    debug: Flag = Field(
        default=False,
        description="Keep pictures on the way as well: the image as it was taken, masks, what was painted before it "
        "was restored. They are named in each picture's `artifacts`.",
    )
    output_format: OutputFormat = OutputFormat.PNG
    output_compression: Count | None = Field(
        default=None,
        ge=0,
        le=100,
        description="Quality of `jpeg` and `webp` files in percent, as in OpenAI's API: 100 loses least.",
    )
    previews: Count = Field(
        default=0,
        ge=0,
        le=MAX_PREVIEWS,
        description="At most so many `render.preview` events per picture, evenly spread over its steps: small JPEGs of "
        "what it is going to look like. The picture is the same with and without them.",
    )


class GenerationRequest(GenerationFields):
    """One request for pictures, or for a generation prompt alone."""

    @field_validator("image")
    @classmethod
    def _has_image(cls, image: str | None, info: ValidationInfo) -> str | None:
        if image is None and info.data.get("task") in (Task.SIMILAR, Task.INPAINT, Task.OUTPAINT, Task.EDIT):
            raise PydanticCustomError("missing", "Field required")
        return image

    @field_validator("mask", "outpaint")
    @classmethod
    def _has_what_its_task_needs(cls, value: str | Outpaint | None, info: ValidationInfo) -> str | Outpaint | None:
        needed = {Task.INPAINT: "mask", Task.OUTPAINT: "outpaint"}.get(info.data.get("task", Task.PROMPT))
        if value is None and needed == info.field_name:
            raise PydanticCustomError("missing", "Field required")
        return value

    @field_validator("instruction")
    @classmethod
    def _says_something(cls, instruction: str, info: ValidationInfo) -> str:
        is_alone = "image" in info.data and info.data["image"] is None
        if not instruction and (is_alone or info.data.get("task") is Task.EDIT):
            raise PydanticCustomError("missing", "Field required")
        return instruction

    @model_validator(mode="after")
    def _edits_make_sense(self) -> Self:
        own = (self.edit_strength, self.source_guidance_scale, self.source_prompt or None)
        if self.task is not Task.EDIT:
            if any(value is not None for value in own):
                raise ValueError("'edit_strength', 'source_guidance_scale' and 'source_prompt' belong to task 'edit'")
            if not self.keep_unmasked:
                raise ValueError("'keep_unmasked' belongs to task 'edit'")
            return self
        if self.scheduler not in (None, EDIT_SCHEDULER):
            raise ValueError(f"task 'edit' is made with the scheduler '{EDIT_SCHEDULER}' alone")
        if self.guidance_rescale or self.guidance_interval != (0.0, 1.0):
            raise ValueError("task 'edit' guides every step alike: no 'guidance_rescale', no 'guidance_interval'")
        if bool(self.source_prompt) != (self.prompt_mode is PromptMode.VERBATIM):
            raise ValueError("task 'edit' needs a 'source_prompt' if it is 'verbatim', and takes none otherwise")
        return self

    @model_validator(mode="after")
    def _stages_make_sense(self) -> Self:
        if self.image is not None and self.task is Task.TEXT_TO_IMAGE:
            raise ValueError("task 'text_to_image' takes no image; all others do")
        if self.mask is not None and self.task not in (Task.INPAINT, Task.EDIT):
            raise ValueError("a mask belongs to tasks 'inpaint' and 'edit'")
        if self.outpaint is not None and self.task is not Task.OUTPAINT:
            raise ValueError("'outpaint' belongs to the task of that name")
        if self.restore is Restore.ON and self.task not in (Task.INPAINT, Task.OUTPAINT):
            raise ValueError("'restore' belongs to tasks that paint in part: 'inpaint' and 'outpaint'")
        if self.strength is not None and self.task not in (Task.SIMILAR, Task.INPAINT):
            raise ValueError("'strength' belongs to tasks that start from an image: 'similar' and 'inpaint'")
        if self.task is Task.SIMILAR and self.prompt_mode is PromptMode.VERBATIM:
            raise ValueError("task 'similar' asks the language model to look at the image; it cannot be 'verbatim'")
        if self.task is Task.PROMPT and self.prompt_mode is PromptMode.VERBATIM:
            raise ValueError("task 'prompt' asks the language model to write a prompt; it cannot be 'verbatim'")
        if self.task is Task.PROMPT and self.approve:
            raise ValueError("task 'prompt' ends when the prompt is written; there is nothing to approve")
        if self.history and self.prompt_mode is PromptMode.VERBATIM:
            raise ValueError("a verbatim prompt is not written by the language model, who is told the 'history'")
        if self.approve and self.prompt_mode is PromptMode.VERBATIM:
            raise ValueError("a verbatim prompt is yours already; 'approve' applies to refined prompts")
        if self.output_compression is not None and self.output_format is OutputFormat.PNG:
            raise ValueError("'png' files lose nothing; 'output_compression' is for 'jpeg' and 'webp'")
        return self
