"""Keys open the door, and each opens it to one tenant's things only."""

import asyncio
import logging
import re
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from clients.keys import KeysFile
from gateway.authentication import OPEN_PATHS
from gateway.server import GatewayServer
from shared.contracts import JobStatus, Lane
from shared.contracts.keys import FILE_NAME, Tenant
from shared.settings import AuthSettings, Settings
from tests.gateway.conftest import PATIENCE_S, House, serving, until
from tests.gateway.pictures import file_of, pixels_of
from tests.gateway.tenants import as_holder, new_key, set_tenants, with_keys

CALLS = [
    ("POST", "/v1/generations"),
    ("GET", "/v1/jobs"),
    ("GET", "/v1/jobs/job_1"),
    ("GET", "/v1/jobs/job_1/events"),
    ("POST", "/v1/jobs/job_1/cancel"),
    ("POST", "/v1/jobs/job_1/approve"),
    ("POST", "/v1/sessions"),
    ("GET", "/v1/sessions"),
    ("GET", "/v1/webhooks"),
    ("GET", "/v1/sessions/ses_1"),
    ("DELETE", "/v1/sessions/ses_1"),
    ("POST", "/v1/sessions/ses_1/turns"),
    ("POST", "/v1/images"),
    ("GET", "/v1/images/img_1"),
    ("GET", "/v1/models"),
    ("GET", "/v1/nowhere"),
    ("GET", "/"),
]
READS = 1_000


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """Return the settings of a gateway that asks for keys."""
    return with_keys(settings)


@pytest.fixture
async def alice(house: House, tmp_path: Path) -> AsyncIterator[House]:
    """Yield the house as a tenant sees it."""
    async with as_holder(house, await _known(house, new_key(tmp_path, "alice"))) as view:
        yield view


@pytest.fixture
async def bob(house: House, tmp_path: Path) -> AsyncIterator[House]:
    """Yield the house as another tenant sees it."""
    async with as_holder(house, await _known(house, new_key(tmp_path, "bob"))) as view:
        yield view


async def _status_with(house: House, key: str) -> int:
    return (await house.http.get("/v1/models", headers={"Authorization": f"Bearer {key}"})).status_code


async def _known(house: House, key: str) -> str:
    """Return the key when the gateway has seen it in its file."""

    async def is_known() -> bool:
        return await _status_with(house, key) == 200

    await until(is_known)
    return key


def test_probes_and_the_description_alone_are_open() -> None:
    assert OPEN_PATHS == {"/livez", "/readyz", "/health", "/openapi.json"}


async def test_call_without_a_key_is_refused_before_anything_else(http: httpx.AsyncClient) -> None:
    for method, path in CALLS:
        response = await http.request(method, path)
        assert response.status_code == 401, path
        assert response.headers["www-authenticate"] == 'Bearer realm="llmga"'
        assert response.headers["x-request-id"]
        assert response.json()["code"] == "unauthenticated"


async def test_open_paths_need_no_key(http: httpx.AsyncClient) -> None:
    for path in OPEN_PATHS:
        assert (await http.get(path)).status_code in {200, 503}, path


async def test_key_that_is_not_good_is_told_from_none_at_all(http: httpx.AsyncClient) -> None:
    response = await http.get("/v1/models", headers={"Authorization": "Bearer llmga_nonsense"})
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == 'Bearer realm="llmga", error="invalid_token"'
    assert "nonsense" not in response.text


async def test_stranger_is_refused_before_its_body_is_read(gateway: GatewayServer) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    writer.write(b"POST /v1/generations HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n")  # and no body
    async with asyncio.timeout(PATIENCE_S):
        assert b" 401 " in await reader.readline()
    writer.close()
    await writer.wait_closed()


async def test_key_stops_working_when_it_is_revoked(house: House, tmp_path: Path) -> None:
    key, other = [await _known(house, new_key(tmp_path, "alice")) for _ in range(2)]
    KeysFile(tmp_path / FILE_NAME).revoke(key.split("_")[1])

    async def is_refused() -> bool:
        return await _status_with(house, key) == 401

    await until(is_refused)
    assert await _status_with(house, other) == 200


async def test_mode_none_asks_nobody_and_says_so_loudly(settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    open_house = settings.model_copy(update={"auth": AuthSettings(mode="none")})
    with caplog.at_level(logging.WARNING, "llmga.gateway"):
        async with serving(open_house) as server:
            url = f"http://127.0.0.1:{server.port}"
            async with httpx.AsyncClient(base_url=url, trust_env=False) as http:
                assert (await http.get("/v1/models")).status_code == 200
                assert (await http.get("/readyz?verbose")).json()["authentication"] == "none"
    assert "AUTHENTICATION IS OFF" in caplog.text


async def test_readiness_says_that_keys_are_asked_for(http: httpx.AsyncClient) -> None:
    assert (await http.get("/readyz?verbose")).json()["authentication"] == "keys"
    assert "authentication" not in (await http.get("/readyz")).json()


async def test_lane_of_a_tenant_wins_over_what_it_asks_for(house: House, alice: House, tmp_path: Path) -> None:
    set_tenants(tmp_path, {"alice": Tenant(lane=Lane.BATCH)})

    async def is_in_the_batch_lane() -> bool:
        return (await alice.submit(lane="interactive")).request.lane is Lane.BATCH

    await until(is_in_the_batch_lane)


def _anonymous(response: httpx.Response, secret_id: str) -> tuple[int, str]:
    """Return what an answer says, without the id that was asked for and that of the request."""
    text = response.text.replace(secret_id, "ID")
    return response.status_code, re.sub(r"urn:llmga:request:\w+", "", text)


def _reads(job_id: str, image_id: str) -> list[tuple[str, str, dict[str, object]]]:
    """Return every call that names a thing by its id, as (method, path, options)."""
    job = f"/v1/jobs/{job_id}"
    similar = {"task": "similar", "image": image_id}
    return [
        ("GET", job, {}),
        ("GET", f"{job}/events", {}),
        ("GET", f"{job}/events", {"headers": {"Accept": "application/json"}}),
        ("GET", f"{job}/events", {"headers": {"Last-Event-ID": "1-1"}}),
        ("POST", f"{job}/cancel", {}),
        ("POST", f"{job}/approve", {}),
        ("POST", f"{job}/approve", {"json": {"prompt": "mine now"}}),
        ("GET", f"/v1/images/{image_id}", {}),
        ("GET", f"/v1/images/{image_id}", {"headers": {"If-None-Match": "*"}}),
        ("HEAD", f"/v1/images/{image_id}", {}),
        ("POST", "/v1/generations", {"json": similar}),
        ("POST", "/v1/generations", {"json": similar, "headers": {"Prefer": "wait=1"}}),
    ]


async def test_what_belongs_to_another_tenant_answers_as_what_does_not_exist(
    house: House, alice: House, bob: House
) -> None:
    finished = await alice.http.post("/v1/generations", json={"instruction": "a"}, headers={"Prefer": "wait=60"})
    held = await alice.submit(approve=True)
    uploaded = await alice.http.post("/v1/images", content=file_of(pixels_of()), headers={"Content-Type": "image/png"})

    async def is_held() -> bool:
        return (await alice.job(held.id)).status is JobStatus.AWAITING_APPROVAL

    await until(is_held)
    house.render.gate.clear()
    running = await alice.submit()
    jobs = [finished.json()["id"], held.id, running.id]
    images = [finished.json()["images"][0]["id"], uploaded.json()["id"]]
    unknown_job, unknown_image = f"job_{'0' * 32}", f"img_{'0' * 40}"
    unknown = {}
    for number, (method, path, options) in enumerate(_reads(unknown_job, unknown_image)):
        response = await bob.http.request(method, path, **options)  # type: ignore[arg-type]
        unknown[number] = _anonymous(response, unknown_job if "jobs" in path else unknown_image)
    assert {status for status, _ in unknown.values()} == {404, 422}
    for parameters in ({}, {"status": "succeeded"}, {"after": "9" * 16}):
        listed = await bob.http.get("/v1/jobs", params=parameters)
        assert listed.json() == {"object": "list", "data": []}

    async def read(turn: int) -> None:
        job_id, image_id = jobs[turn % len(jobs)], images[turn % len(images)]
        for number, (method, path, options) in enumerate(_reads(job_id, image_id)):
            response = await bob.http.request(method, path, **options)  # type: ignore[arg-type]
            told = _anonymous(response, job_id if "jobs" in path else image_id)
            assert told == unknown[number], (method, path)

    turns = -(-READS // len(unknown))
    for start in range(0, turns, 12):
        await asyncio.gather(*(read(turn) for turn in range(start, min(turns, start + 12))))
    statuses = [(await alice.job(job_id)).status for job_id in jobs]
    assert statuses[:2] == [JobStatus.SUCCEEDED, JobStatus.AWAITING_APPROVAL]
    assert statuses[2] not in {JobStatus.CANCELED, JobStatus.FAILED}
    assert (await alice.http.get(f"/v1/images/{images[0]}")).status_code == 200


async def test_tenants_do_not_share_idempotency_keys(alice: House, bob: House) -> None:
    headers = {"Idempotency-Key": "order-1138"}
    body = {"instruction": "a red house"}
    mine, theirs = [await view.http.post("/v1/generations", json=body, headers=headers) for view in (alice, bob)]
    assert mine.json()["id"] != theirs.json()["id"]
    assert "idempotency-replayed" not in theirs.headers


async def test_waiting_client_of_a_tenant_gets_its_job_and_leaving_cancels_it(house: House, alice: House) -> None:
    body = {"instruction": "a red house"}
    waited = await alice.http.post("/v1/generations", json=body, headers={"Prefer": "wait=60"})
    assert waited.json()["status"] == "succeeded"
    house.prompt.gate.clear()
    seen = len(house.prompt.claims)
    call = asyncio.create_task(alice.http.post("/v1/generations", json=body, headers={"Prefer": "wait=60"}))
    await until(lambda: len(house.prompt.claims) > seen)
    call.cancel()
    job_id = house.prompt.claims[-1].job.id

    async def is_canceled() -> bool:
        return (await alice.job(job_id)).status is JobStatus.CANCELED

    await until(is_canceled)
