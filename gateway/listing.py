"""What a client asks for when it lists its jobs: the parameters of `GET /v1/jobs`."""

import re

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from starlette.datastructures import QueryParams

from shared.contracts import JobStatus, Task
from shared.validation import validation_problem

MAX_LISTED = 100
DEFAULT_LISTED = 20

_PLACE = re.compile(r"[0-9]{1,16}")  # microseconds since 1970, exact in the server's floating-point scores


class Listing(BaseModel):
    """Which jobs are wanted. A parameter that is not known is refused: a misspelled filter would filter nothing."""

    model_config = ConfigDict(extra="forbid")

    status: JobStatus | None = None
    task: Task | None = None
    limit: int = Field(default=DEFAULT_LISTED, ge=1, le=MAX_LISTED)
    after: str | None = None

    @field_validator("after")
    @classmethod
    def _is_place(cls, after: str | None) -> str | None:
        if after is not None and not _PLACE.fullmatch(after):
            raise ValueError("must be the `next` of a page of jobs")
        return after


def listing_of(parameters: QueryParams) -> Listing:
    """Return what is asked for.

    Raises:
        InvalidRequest: a parameter is unknown, or makes no sense.
    """
    try:
        return Listing.model_validate(dict(parameters))
    except ValidationError as error:
        raise validation_problem(error, Listing) from None
