"""Tenants with keys of their own, before one gateway."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import httpx

from clients.keys import KeysFile
from shared.contracts.keys import FILE_NAME, Keys, Tenant
from shared.settings import AuthSettings, Settings
from tests.gateway.conftest import PATIENCE_S, House


def with_keys(settings: Settings) -> Settings:
    """Return the settings of a gateway that asks for keys, as it does by default."""
    return settings.model_copy(update={"auth": AuthSettings()})


def new_key(home: Path, tenant: str) -> str:
    """Return a new key of the tenant."""
    return KeysFile(home / FILE_NAME).create(tenant)[1]


def set_tenants(home: Path, tenants: dict[str, Tenant]) -> None:
    """Write what holds for some tenants into the file, as an operator would."""
    file = KeysFile(home / FILE_NAME)
    keys = Keys(keys=file.read().keys, tenants=tenants)
    file.path.write_text(keys.model_dump_json(exclude_unset=True))


@asynccontextmanager
async def as_holder(house: House, key: str) -> AsyncIterator[House]:
    """Yield the house as the holder of a key sees it."""
    headers = {"Authorization": f"Bearer {key}"}
    limits = httpx.Limits(max_connections=64)
    async with httpx.AsyncClient(
        base_url=house.url, headers=headers, timeout=PATIENCE_S, limits=limits, trust_env=False
    ) as http:
        yield replace(house, http=http)
