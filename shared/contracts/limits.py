"""How much a tenant may ask for, and what is left of it."""

from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, Field

UNIT = 1_000  # charges are counted in thousandths of a cost unit, so that they add up exactly


class Limits(BaseModel):
    """The bounds of one tenant; 0 stands for no bound.

    The default of the daily units is no bound, because what a unit is worth depends on the operator's devices.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    requests_per_minute: int = Field(
        default=600,
        ge=0,
        le=1_000_000,
        description="Submissions, uploads and chats per tenant and minute; 0: no limit.",
    )
    burst: int = Field(default=60, ge=1, le=100_000, description="How many of them may come at once.")
    max_jobs: int = Field(
        default=100,  # a tenth of the queue's bound: one tenant cannot fill it for the others
        ge=0,
        le=1_000_000,
        description="Jobs of a tenant that have not ended; 0: no limit.",
    )
    units_per_day: float = Field(
        default=0,
        ge=0,
        le=1_000_000_000,
        allow_inf_nan=False,
        description="Cost units per tenant and day (UTC), one being a picture of 512x512 in 50 guided steps; "
        "0: no limit.",
    )


UNLIMITED = Limits(requests_per_minute=0, max_jobs=0, units_per_day=0)


@dataclass(frozen=True, slots=True)
class Charge:
    """What a job costs, in thousandths of a cost unit, for the work of each stage."""

    prompt: int = 0
    render: int = 0


FREE = Charge()


@dataclass(frozen=True, slots=True)
class Left:
    """What is left of one limit, and the seconds after which all of it is there again (None: nobody knows)."""

    amount: int
    full_in_s: int | None = None


@dataclass(frozen=True, slots=True)
class Standing:
    """What is left of each limit of a tenant; None where there is no bound."""

    requests: Left | None = None
    jobs: Left | None = None
    units: Left | None = None


UNBOUNDED = Standing()
