"""Limits are told, hold, and refuse with what is left."""

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from gateway.limits import limit_headers
from shared.contracts import JobStatus
from shared.contracts.keys import Tenant
from shared.contracts.limits import UNBOUNDED, UNLIMITED, Left, Limits, Standing
from shared.settings import Settings
from tests.gateway.conftest import House, until
from tests.gateway.pictures import base64_of, file_of, pixels_of
from tests.gateway.tenants import as_holder, new_key, set_tenants, with_keys

BODY = {"instruction": "a red house"}
UNITS = 10  # a picture of the test's model costs far less: 128x128 in 4 steps
# No token comes back while a test runs, however slow the machine is.
LIMITS = Limits(requests_per_minute=1, burst=6, max_jobs=4, units_per_day=UNITS)


@pytest.fixture
def settings(settings: Settings, keys: dict[str, str]) -> Settings:
    """Return the settings of a gateway with narrow limits, whose file of keys is there when it starts."""
    return with_keys(settings).model_copy(update={"limits": LIMITS})


@pytest.fixture
def keys(tmp_path: Path) -> dict[str, str]:
    """Return a key of each tenant."""
    keys = {tenant: new_key(tmp_path, tenant) for tenant in ("alice", "bob", "free", "poor")}
    set_tenants(
        tmp_path,
        {
            "free": Tenant(limits=UNLIMITED),
            "poor": Tenant(limits=Limits(requests_per_minute=0, units_per_day=0.05)),
        },
    )
    return keys


@pytest.fixture
async def alice(keys: dict[str, str], house: House) -> AsyncIterator[House]:
    """Yield the house as a tenant with the limits of the settings sees it."""
    async with as_holder(house, keys["alice"]) as view:
        yield view


def _left(response: httpx.Response) -> dict[str, int]:
    """Return what `RateLimit` says is left, by policy."""
    return {name: int(left) for name, left in re.findall(r'"(\w+)";r=(\d+)', response.headers["ratelimit"])}


async def _cancel_all(view: House, job_ids: list[str]) -> None:
    for job_id in job_ids:
        assert (await view.http.post(f"/v1/jobs/{job_id}/cancel")).status_code == 200


def test_headers_tell_each_limit_that_there_is() -> None:
    limits = Limits(requests_per_minute=600, burst=60, max_jobs=100, units_per_day=500)
    standing = Standing(requests=Left(59, 1), jobs=Left(99), units=Left(498, 3_600))
    assert limit_headers(limits, standing) == {
        "RateLimit-Policy": '"requests";q=60;w=6, "jobs";q=100;qu="concurrent-requests", '
        '"units";q=500;w=86400;qu="llmga-cost-units"',
        "RateLimit": '"requests";r=59;t=1, "jobs";r=99, "units";r=498;t=3600',
    }


def test_without_limits_there_is_nothing_to_tell() -> None:
    assert limit_headers(UNLIMITED, UNBOUNDED) == {}


async def test_submissions_count_and_what_is_left_is_told(house: House, alice: House) -> None:
    house.prompt.gate.clear()
    first, second = [await alice.http.post("/v1/generations", json=BODY) for _ in range(2)]
    assert _left(first) == {"requests": 5, "jobs": 3, "units": UNITS - 1}
    assert _left(second) == {"requests": 4, "jobs": 2, "units": UNITS - 1}
    looked = await alice.http.get(f"/v1/jobs/{first.json()['id']}")
    assert "ratelimit" not in looked.headers
    await _cancel_all(alice, [first.json()["id"], second.json()["id"]])


async def test_burst_of_a_tenant_is_refused_and_another_tenant_is_not(
    house: House, alice: House, keys: dict[str, str]
) -> None:
    jobs = []
    for _ in range(LIMITS.burst):
        response = await alice.http.post("/v1/generations", json=BODY, headers={"Prefer": "wait=60"})
        assert response.status_code == 200
        jobs.append(response.json()["id"])
    refused = await alice.http.post("/v1/generations", json=BODY)
    assert refused.status_code == 429
    assert refused.json()["code"] == "rate_limited"
    assert 0 < int(refused.headers["retry-after"]) <= 60
    assert _left(refused)["requests"] == 0
    uploaded = await alice.http.post("/v1/images", content=file_of(pixels_of()), headers={"Content-Type": "image/png"})
    assert (uploaded.status_code, uploaded.json()["code"]) == (429, "rate_limited")
    async with as_holder(house, keys["bob"]) as bob:
        assert (await bob.http.post("/v1/generations", json=BODY)).status_code == 202


async def test_pictures_count_as_uploads_wherever_they_are_sent(alice: House) -> None:
    data = file_of(pixels_of())
    uploaded = await alice.http.post("/v1/images", content=data, headers={"Content-Type": "image/png"})
    assert uploaded.status_code == 201
    assert _left(uploaded) == {"requests": 5}
    named = await alice.http.post(
        "/v1/generations", json={"task": "similar", "image": uploaded.json()["id"]}, headers={"Prefer": "wait=60"}
    )
    assert _left(named)["requests"] == 4
    inline = await alice.http.post(
        "/v1/generations", json={"task": "similar", "image": base64_of(data)}, headers={"Prefer": "wait=60"}
    )
    assert _left(inline)["requests"] == 2


async def test_jobs_under_way_are_bounded_until_one_ends(house: House, alice: House) -> None:
    house.prompt.gate.clear()
    jobs = [(await alice.submit()).id for _ in range(4)]
    refused = await alice.http.post("/v1/generations", json=BODY)
    assert (refused.status_code, refused.json()["code"]) == (429, "too_many_jobs")
    assert int(refused.headers["retry-after"]) > 0
    assert _left(refused) == {"requests": 2, "jobs": 0, "units": UNITS - 1}  # a refusal takes nothing
    await _cancel_all(alice, jobs[:1])
    jobs.append((await alice.submit()).id)
    await _cancel_all(alice, jobs[1:])


async def test_job_that_costs_more_than_is_left_is_refused(house: House, keys: dict[str, str]) -> None:
    async with as_holder(house, keys["poor"]) as poor:
        refused = await poor.http.post("/v1/generations", json=BODY)
        assert (refused.status_code, refused.json()["code"]) == (429, "quota_exceeded")
        assert 0 < int(refused.headers["retry-after"]) <= 86_400
        verbatim = {**BODY, "prompt_mode": "verbatim"}
        assert (await poor.http.post("/v1/generations", json=verbatim)).status_code == 202


async def test_replay_of_a_key_takes_nothing_and_is_never_refused(house: House, alice: House) -> None:
    headers = {"Idempotency-Key": "order-1138", "Prefer": "wait=60"}
    first = await alice.http.post("/v1/generations", json=BODY, headers=headers)
    for _ in range(2 * LIMITS.burst):
        again = await alice.http.post("/v1/generations", json=BODY, headers=headers)
        assert again.json()["id"] == first.json()["id"]
    other = await alice.http.post("/v1/generations", json=BODY)
    assert _left(other)["requests"] == LIMITS.burst - 2


async def test_hundred_posts_at_once_with_one_key_make_one_job_and_take_one_token(alice: House) -> None:
    headers = {"Idempotency-Key": "order-1138"}
    answers = await asyncio.gather(
        *(alice.http.post("/v1/generations", json=BODY, headers=headers) for _ in range(100))
    )
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.json()["id"] for answer in answers}) == 1
    other = await alice.http.post("/v1/generations", json={"instruction": "a blue house"}, headers=headers)
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_conflict")
    last = await alice.http.post("/v1/generations", json=BODY)
    assert _left(last)["requests"] == LIMITS.burst - 2


async def test_tenant_without_limits_is_told_none(house: House, keys: dict[str, str]) -> None:
    async with as_holder(house, keys["free"]) as free:
        answers = [await free.http.post("/v1/generations", json=BODY) for _ in range(LIMITS.burst + 2)]
        assert {answer.status_code for answer in answers} == {202}
        assert not any("ratelimit" in answer.headers for answer in answers)

        async def has_ended() -> bool:
            return (await free.job(answers[-1].json()["id"])).status is JobStatus.SUCCEEDED

        await until(has_ended)
