"""What one tenant has, another cannot reach by any call that takes an id; a key stands for one tenant."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from clients.keys import KeysFile
from gateway.app import create_app
from shared.contracts import GenerationRequest
from shared.contracts.keys import FILE_NAME
from shared.contracts.limits import UNLIMITED
from shared.contracts.sessions import SessionRequest, TurnRequest
from shared.settings import Settings
from tests.gateway.conftest import House, until
from tests.gateway.pictures import file_of, pixels_of
from tests.gateway.tenants import as_holder, new_key, with_keys

READS = 500
SECRET = "marigold"  # in everything that alice sends
SHARED = frozenset({"model"})  # ids that belong to no tenant
# Fields of requests that name things of a tenant, and what else a request with one needs.
NAMING: dict[str, dict[str, Any]] = {
    "image": {"task": "similar"},
    "mask": {"task": "inpaint"},
}
# Fields that hold numbers, words and choices, or name what is in the same session only.
NAMING_NOTHING = (
    {name for model in (GenerationRequest, TurnRequest, SessionRequest) for name in model.model_fields}
    - NAMING.keys()
    - {"session_id"}
)


@pytest.fixture
def keys(tmp_path: Path) -> dict[str, str]:
    """Return a key of each tenant."""
    return {tenant: new_key(tmp_path, tenant) for tenant in ("alice", "bob")}


@pytest.fixture
def settings(settings: Settings, keys: dict[str, str]) -> Settings:
    """Return the settings of a gateway that asks for keys, and counts nothing."""
    return with_keys(settings).model_copy(update={"limits": UNLIMITED})


@pytest.fixture
async def alice(house: House, keys: dict[str, str]) -> AsyncIterator[House]:
    """Yield the house as a tenant sees it."""
    async with as_holder(house, keys["alice"]) as view:
        yield view


@pytest.fixture
async def bob(house: House, keys: dict[str, str]) -> AsyncIterator[House]:
    """Yield the house as another tenant sees it."""
    async with as_holder(house, keys["bob"]) as view:
        yield view


async def _job(view: House) -> str:
    return (await view.submit(instruction=SECRET)).id


async def _result(view: House) -> str:
    body = {"instruction": SECRET}
    finished = await view.http.post("/v1/generations", json=body, headers={"Prefer": "wait=60"})
    return str(finished.json()["images"][0]["id"])


async def _upload(view: House) -> str:
    file = file_of(pixels_of())
    return str((await view.http.post("/v1/images", content=file, headers={"Content-Type": "image/png"})).json()["id"])


async def _session(view: House) -> str:
    session = (await view.http.post("/v1/sessions", json={"name": SECRET})).json()["id"]
    turn = await view.http.post(f"/v1/sessions/{session}/turns", json={"instruction": SECRET})
    assert turn.status_code == 202, turn.text
    return str(session)


MAKERS: dict[str, list[Callable[[House], Awaitable[str]]]] = {
    "job_id": [_job],
    "image_id": [_result, _upload],
    "session_id": [_session],
}


def _operations() -> list[tuple[str, str, set[str]]]:
    """Return every call of the description as (method, path, names of the ids in the path)."""
    paths = create_app(Settings()).openapi()["paths"]
    return [
        (method, path, {part[1:-1] for part in path.split("/") if part.startswith("{")})
        for path, methods in paths.items()
        for method in methods
    ]


def test_every_kind_of_id_is_looked_at_here() -> None:
    named = set().union(*(names for _, _, names in _operations()))
    assert named == MAKERS.keys() | SHARED, "a new kind of id needs a maker, or belongs to nobody"
    fields = set(GenerationRequest.model_fields) | set(TurnRequest.model_fields) | set(SessionRequest.model_fields)
    ids = {name for name in fields if name.endswith("_id")}
    assert ids <= MAKERS.keys()
    assert fields == NAMING.keys() | NAMING_NOTHING | ids


async def test_no_call_reaches_what_another_tenant_has(alice: House, bob: House) -> None:
    owned = {name: [await make(alice) for make in makers] for name, makers in MAKERS.items()}
    for name, makers in MAKERS.items():
        for make in makers:
            assert await make(bob) not in owned[name]  # of equal bytes, too
    before = {path: (await alice.http.get(path)).json() for path in _of(owned, "get")}
    assert all(SECRET in str(value) for path, value in before.items() if "/images/" not in path)
    calls = [
        (method, path.replace(f"{{{name}}}", one))
        for method, path, names in _operations()
        for name in names & MAKERS.keys()
        for one in owned[name]
    ]
    turns = -(-READS // len(calls))
    answers = []
    for _ in range(turns):
        answers += await asyncio.gather(*(bob.http.request(method, path, **_body(method)) for method, path in calls))
    assert len(answers) >= READS
    assert {answer.status_code for answer in answers} == {404}
    assert not [answer for answer in answers if SECRET in answer.text]
    for field, others in NAMING.items():
        for image in owned["image_id"]:
            own = {name: await _upload(bob) for name in ("image", "mask") if name != field}
            answer = await bob.http.post("/v1/generations", json={"instruction": "a", **own, **others, field: image})
            assert answer.status_code == 422, answer.text
    after = {path: (await alice.http.get(path)).json() for path in before if "/sessions/" in path}
    assert after == {path: value for path, value in before.items() if "/sessions/" in path}


def _of(owned: dict[str, list[str]], wanted: str) -> list[str]:
    return [
        path.replace(f"{{{name}}}", one)
        for method, path, names in _operations()
        if method == wanted and not path.endswith("/events")
        for name in names & {"job_id", "session_id"}
        for one in owned[name]
    ]


def _body(method: str) -> dict[str, Any]:
    return {"json": {}} if method == "post" else {}


async def test_no_page_lists_what_another_tenant_has(alice: House, bob: House) -> None:
    for makers in MAKERS.values():
        for make in makers:
            await make(alice)
    pages = [path for method, path, names in _operations() if method == "get" and not names and path.startswith("/v1/")]
    assert {"/v1/jobs", "/v1/sessions"} <= set(pages)
    for path in pages:
        assert SECRET not in (await bob.http.get(path)).text, path
    for path in ("/v1/jobs", "/v1/sessions"):
        first = (await alice.http.get(path, params={"limit": 1})).json()
        assert SECRET in str(first)
        after = first.get("next", "9" * 16)
        assert (await bob.http.get(path, params={"after": after})).json()["data"] == []


async def test_hundred_calls_with_one_key_make_one_job(alice: House, bob: House) -> None:
    headers = {"Idempotency-Key": "order-1138"}

    async def submit(view: House, instruction: str) -> Any:
        return await view.http.post("/v1/generations", json={"instruction": instruction}, headers=headers)

    answers = await asyncio.gather(*(submit(alice, SECRET) for _ in range(100)))
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert sum("idempotency-replayed" not in answer.headers for answer in answers) == 1
    assert len((await alice.http.get("/v1/jobs")).json()["data"]) == 1
    others = await asyncio.gather(*(submit(alice, f"another {number}") for number in range(10)))
    assert {(answer.status_code, answer.json()["code"]) for answer in others} == {(422, "idempotency_conflict")}
    assert (await submit(bob, "another")).status_code == 202


async def test_revoked_key_stops_working_within_a_second(alice: House, tmp_path: Path) -> None:
    file = KeysFile(tmp_path / FILE_NAME)
    taken_s = []
    for _ in range(5):  # a busy machine may be late; it is not late five times
        key = new_key(tmp_path, "alice")

        async def answers(status: int, key: str = key) -> bool:
            headers = {"Authorization": f"Bearer {key}"}
            return (await alice.http.get("/v1/models", headers=headers)).status_code == status

        await until(lambda: answers(200))
        started_s = time.monotonic()
        file.revoke(key.split("_")[1])
        await until(lambda: answers(401))
        taken_s.append(time.monotonic() - started_s)
        if taken_s[-1] < 1:
            return
    raise AssertionError(f"it took {min(taken_s):.1f} s at best")
