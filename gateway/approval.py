"""The body of `POST /v1/jobs/{id}/approve`."""

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from shared.contracts.generation import MAX_INSTRUCTION_CHARS, meaningful


class Approval(BaseModel):
    """A person's word on a generation prompt."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    prompt: Annotated[str, Field(min_length=1, max_length=MAX_INSTRUCTION_CHARS), AfterValidator(meaningful)] | None = (
        Field(
            default=None,
            description="The prompt to render instead; the language model's own if left out.",
            examples=["a snowman at night, falling snow, blue light"],
        )
    )
