"""The file of API keys: whom the gateway lets in, and how much each tenant may ask for.

`llmga keys` writes it, the gateway reads it. It holds no secrets: of a key's secret only the SHA-256 is kept. A slow
hash would protect nothing more, because a secret is 256 random bits, which nobody can guess from its hash; a fast one
costs each request a microsecond.
"""

import hashlib
import re
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from shared.contracts.generation import Lane
from shared.contracts.limits import Limits

PREFIX = "llmga_"  # so that people and scanners know a key when they see one
FILE_NAME = "keys.json"  # in the home folder, unless the settings name another
MAX_FILE_BYTES = 16 * 1_048_576  # about 50,000 keys

_TOKEN = re.compile(rf"{PREFIX}([0-9a-f]{{12}})_([A-Za-z0-9_-]{{43}})")

KeyId = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{12}$")]
TenantName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._@-]{0,63}$")]
Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class Key(BaseModel):
    """One API key, as `llmga_<id>_<secret>`: the id is public, the secret is known to its owner only."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: KeyId
    tenant: TenantName
    sha256: Digest = Field(description="Of the secret.")
    created: float = Field(ge=0, description="Unix time in seconds.")
    revoked: float | None = Field(default=None, ge=0, description="Unix time in seconds; absent while the key is good.")
    note: str = Field(default="", max_length=200)


class Tenant(BaseModel):
    """What holds for one tenant and not for all."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    limits: Limits = Field(
        default_factory=Limits, description="Only what is named here differs from the settings `LLMGA_LIMITS__…`."
    )
    lane: Lane | None = Field(default=None, description="The lane of all its jobs, whatever they ask for.")

    def limits_over(self, defaults: Limits) -> Limits:
        """Return the tenant's limits: its own where it has them, the defaults elsewhere."""
        return defaults.model_copy(update=self.limits.model_dump(exclude_unset=True))


class Keys(BaseModel):
    """The whole file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    keys: list[Key] = Field(default_factory=list)
    tenants: dict[TenantName, Tenant] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _have_ids_of_their_own(self) -> Self:
        if len({key.id for key in self.keys}) != len(self.keys):
            raise ValueError("two keys have the same id")
        return self


def token_of(key_id: str, secret: str) -> str:
    """Return what the owner of a key sends."""
    return f"{PREFIX}{key_id}_{secret}"


def split_token(token: str) -> tuple[str, str] | None:
    """Return (id, secret) of what somebody sent, None when it cannot be a key."""
    match = _TOKEN.fullmatch(token)
    return None if match is None else (match[1], match[2])


def digest_of(secret: str) -> str:
    """Return what the file keeps of a secret."""
    return hashlib.sha256(secret.encode()).hexdigest()
