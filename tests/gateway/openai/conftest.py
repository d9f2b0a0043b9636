"""OpenAI's own Python client, as it comes, before a real gateway."""

from collections.abc import AsyncIterator

import pytest
from openai import AsyncOpenAI

from tests.gateway.conftest import PATIENCE_S, House


def client_of(url: str, key: str = "none needed") -> AsyncOpenAI:
    """Return a client of a gateway that does not try again by itself."""
    return AsyncOpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=PATIENCE_S)


@pytest.fixture
async def openai(house: House) -> AsyncIterator[AsyncOpenAI]:
    """Yield a client of the house."""
    async with client_of(house.url) as client:
        yield client
