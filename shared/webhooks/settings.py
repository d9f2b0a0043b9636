"""The operator's word on webhooks."""

import base64
import binascii
import re
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from shared.contracts.webhooks import origin_of

SECRET_PREFIX = "whsec_"
MIN_SECRET_BYTES, MAX_SECRET_BYTES = 24, 64  # as Standard Webhooks has it

_HOST = re.compile(r"(https?://)?(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+)(:[0-9]{1,5})?")


def _hosts(text: str) -> str:
    for host in _split(text):
        if not _HOST.fullmatch(host):
            raise ValueError(f"{host!r} is no host: a name, and a port if it is not 443")
        _origin(host)
    return text


def _secret(text: str) -> str:
    if text and not MIN_SECRET_BYTES <= len(secret_bytes(text)) <= MAX_SECRET_BYTES:
        raise ValueError(f"must be {SECRET_PREFIX} and the base64 of {MIN_SECRET_BYTES} to {MAX_SECRET_BYTES} bytes")
    return text


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _origin(host: str) -> str:
    return origin_of(host if "://" in host else f"https://{host}")


def secret_bytes(text: str) -> bytes:
    """Return the bytes of a secret, none of what is no secret."""
    try:
        return (
            base64.b64decode(text.removeprefix(SECRET_PREFIX), validate=True) if text.startswith(SECRET_PREFIX) else b""
        )
    except binascii.Error:
        return b""


class WebhookSettings(BaseModel):
    """Where webhooks may go, and how hard they are tried."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    hosts: Annotated[str, AfterValidator(_hosts)] = Field(
        default="",
        description="Hosts that webhooks may be sent to, separated by commas: `hooks.example.com` (https), "
        "`hooks.example.com:8443`, `http://10.0.0.5:8080`; empty: no webhooks.",
    )
    secret: Annotated[str, AfterValidator(_secret)] = Field(
        default="",
        repr=False,
        description="Key of which each tenant's signing secret is made: `whsec_` and the base64 of 24 to 64 random "
        "bytes.",
    )
    allow_private: bool = Field(
        default=False, description="Whether those hosts may have private, loopback or link-local addresses."
    )
    timeout_s: float = Field(
        default=10.0, gt=0, le=60, allow_inf_nan=False, description="Longest wait for a receiver's answer."
    )
    max_attempts: int = Field(default=8, ge=1, le=20, description="Tries of a delivery, over two to three hours.")

    @property
    def origins(self) -> frozenset[str]:
        """The hosts as origins, in their one form."""
        return frozenset(_origin(host) for host in _split(self.hosts))
