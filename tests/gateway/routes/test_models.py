"""`GET /v1/models` lists what live workers serve."""

import httpx

from gateway.answers import ModelList
from shared.contracts import Stage
from tests.gateway.conftest import House, until


async def test_models_of_live_workers_are_listed_with_their_defaults(house: House) -> None:
    response = await house.http.get("/v1/models")
    assert response.status_code == 200
    cards = {card.id: card for card in ModelList.model_validate(response.json()).data}
    assert set(cards) == {"writer", "painter"}
    assert cards["writer"].stage is Stage.PROMPT
    assert cards["painter"].default
    assert cards["painter"].size == "128x128"
    assert cards["painter"].workers == 1
    assert cards["painter"].ready


async def test_model_goes_with_its_last_worker(house: House) -> None:
    house.render.models.append(house.render.models[0].model_copy(update={"name": "second", "default": False}))
    await house.queue.announce(house.render.announcement())
    await until(lambda: _serves(house, "second"))
    house.render.models.pop()
    await house.queue.announce(house.render.announcement())
    await until(lambda: _lacks(house, "second"))


async def test_without_workers_the_list_is_empty(http: httpx.AsyncClient) -> None:
    assert (await http.get("/v1/models")).json() == {"object": "list", "data": []}


async def test_published_checkpoints_are_listed_when_asked_for(http: httpx.AsyncClient) -> None:
    body = (await http.get("/v1/models", params={"published": ""})).json()
    assert body["data"] == []
    assert len(body["published"]) == 21
    (model,) = [model for model in body["published"] if model["hub_id"] == "binxia/llmga-cn-gemma-2b-it-full-finetune"]
    assert model["languages"] == ["en", "zh"]
    assert model["family"] == "gemma"
    assert model["memory_gb"].keys() == {"bf16", "8bit", "4bit"}


async def test_facts_of_a_language_model_are_listed(house: House) -> None:
    facts = {"source": "llmga-gemma-2b-it-full-finetune", "dtype": "bfloat16", "quantization": "fp8"}
    house.prompt.models[0] = house.prompt.models[0].model_copy(update={**facts, "languages": ["en"]})
    await house.queue.announce(house.prompt.announcement())

    async def listed() -> bool:
        cards = {card["id"]: card for card in (await house.http.get("/v1/models")).json()["data"]}
        return bool(facts.items() <= cards["writer"].items() and cards["writer"]["languages"] == ["en"])

    await until(listed)


async def _serves(house: House, name: str) -> bool:
    return name in {card["id"] for card in (await house.http.get("/v1/models")).json()["data"]}


async def _lacks(house: House, name: str) -> bool:
    return not await _serves(house, name)
