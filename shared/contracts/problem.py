"""Problems as RFC 9457 `application/problem+json`."""

from pydantic import BaseModel, ConfigDict, Field


class FieldProblem(BaseModel):
    """One field of a refused request: where it is, what is wrong, what is allowed."""

    model_config = ConfigDict(extra="forbid")

    field: str = Field(description="Dotted path of the field, empty for the whole body.")
    code: str = Field(description="Stable name of the rule that was broken.")
    message: str


class OpenAIError(BaseModel):
    """What went wrong, in the terms of OpenAI's clients."""

    model_config = ConfigDict(extra="forbid")

    message: str
    type: str = Field(description="The family of the error, by its status.", examples=["invalid_request_error"])
    param: str | None = Field(default=None, description="The first field that is at fault.")
    code: str = Field(description="Stable machine-readable name.")


class Problem(BaseModel):
    """An error as clients see it (RFC 9457 §3.1), with a stable `code` and what to do next."""

    model_config = ConfigDict(extra="forbid")

    type: str = Field(description="URI that names the kind of problem: `urn:llmga:problem:<code>`.")
    title: str
    status: int = Field(ge=400, le=599)
    code: str = Field(description="Stable machine-readable name; never changes its meaning.")
    detail: str = Field(description="What happened, in one or two sentences.")
    next_step: str = Field(description="What the client can do about it.")
    instance: str | None = Field(default=None, description="The request or job that met the problem.")
    errors: list[FieldProblem] = Field(default_factory=list)
    served_models: list[str] | None = Field(default=None, description="With `model_not_served`: those that are.")
    error: OpenAIError | None = Field(
        default=None, description="On calls that OpenAI's clients make too: the same in their terms."
    )
