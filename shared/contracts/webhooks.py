"""Webhooks: events of a job that are sent to a URL, signed as Standard Webhooks 1.0 says (standardwebhooks.com)."""

from enum import StrEnum
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from shared.contracts.events import EventType

MAX_URL_CHARS = 2_048
_DEFAULT_PORTS = {"https": 443, "http": 80}


class WebhookEvent(StrEnum):
    """The events that can be sent: those of which a job has few."""

    QUEUED = EventType.QUEUED.value
    STARTED = EventType.STARTED.value
    PROMPT_COMPLETED = EventType.PROMPT_COMPLETED.value
    AWAITING_APPROVAL = EventType.AWAITING_APPROVAL.value
    IMAGE_COMPLETED = EventType.IMAGE_COMPLETED.value
    SUCCEEDED = EventType.SUCCEEDED.value
    FAILED = EventType.FAILED.value
    CANCELED = EventType.CANCELED.value


ENDS = (WebhookEvent.SUCCEEDED, WebhookEvent.FAILED, WebhookEvent.CANCELED)


def origin_of(url: str) -> str:
    """Return scheme, host and port of a URL in their one form: `https://hooks.example.com:443`.

    Raises:
        ValueError: it is no absolute `http` or `https` URL, or it has a user, a password or a fragment.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise ValueError("must be a URL") from None
    if parts.scheme not in _DEFAULT_PORTS or not host or not url.isascii() or not url.isprintable() or " " in url:
        raise ValueError("must be an absolute https:// or http:// URL in ASCII")
    if "@" in parts.netloc or parts.fragment or "\\" in url:
        raise ValueError("must have no user, no password and no fragment")
    shown = f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{shown}:{port or _DEFAULT_PORTS[parts.scheme]}"


def _checked_url(url: str) -> str:
    origin_of(url)
    return url


class Webhook(BaseModel):
    """Where a job's events are sent, and which."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: Annotated[str, Field(min_length=1, max_length=MAX_URL_CHARS), AfterValidator(_checked_url)] = Field(
        description="Its host must be one that the operator allows.", examples=["https://hooks.example.com/llmga"]
    )
    events: Annotated[tuple[WebhookEvent, ...], Field(min_length=1, max_length=len(WebhookEvent))] = Field(
        default=ENDS, description="The job's end, if left out."
    )


class WebhookMessage(BaseModel):
    """The body of what is sent."""

    model_config = ConfigDict(extra="forbid")

    type: WebhookEvent
    timestamp: str = Field(description="When it happened, by the queue's clock (RFC 3339).")
    data: dict[str, Any] = Field(description="As in the event, and `job_id`.")


class WebhookTerms(BaseModel):
    """What a tenant must know of webhooks: where they may go, and how those for it are signed."""

    model_config = ConfigDict(extra="forbid")

    origins: list[str] = Field(description="Where they may go; none: this server sends no webhooks.")
    secret: str | None = Field(default=None, description="Yours alone: `whsec_` and base64; it verifies signatures.")
