"""What a client asks for when it lists its jobs or sessions: the parameters of `GET /v1/jobs` and `/v1/sessions`."""

import re
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from starlette.datastructures import QueryParams

from shared.contracts import JobStatus, Task
from shared.validation import validation_problem

MAX_LISTED = 100
DEFAULT_LISTED = 20

_PLACE = re.compile(r"[0-9]{1,16}")  # microseconds since 1970, exact in the server's floating-point scores


class Page(BaseModel):
    """Which part of a list is wanted. A parameter that is not known is refused: a misspelled one would do nothing."""

    model_config = ConfigDict(extra="forbid")

    limit: int = Field(default=DEFAULT_LISTED, ge=1, le=MAX_LISTED)
    after: str | None = None

    @field_validator("after")
    @classmethod
    def _is_place(cls, after: str | None) -> str | None:
        if after is not None and not _PLACE.fullmatch(after):
            raise ValueError("must be the `next` of a page")
        return after


class Listing(Page):
    """Which jobs are wanted."""

    status: JobStatus | None = None
    task: Task | None = None


Wanted = TypeVar("Wanted", bound=Page)


def listing_of(parameters: QueryParams, kind: type[Wanted]) -> Wanted:
    """Return what is asked for.

    Raises:
        InvalidRequest: a parameter is unknown, or makes no sense.
    """
    try:
        return kind.model_validate(dict(parameters))
    except ValidationError as error:
        raise validation_problem(error, kind) from None
