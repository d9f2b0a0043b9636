"""Sessions over HTTP: conversations whose turns are jobs."""

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from shared.contracts import Job, JobStatus, Stage
from shared.contracts.sessions import Session, SessionList, SessionSummary
from shared.settings import SessionSettings, Settings
from tests.gateway.conftest import House
from tests.gateway.tenants import as_holder, new_key, with_keys

MAX_TURNS = 12


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """Return the settings of a gateway with small sessions."""
    bounds = SessionSettings(max_turns=MAX_TURNS, max_sessions=5)
    return settings.model_copy(update={"sessions": bounds})


async def begin(house: House, **fields: object) -> str:
    answer = await house.http.post("/v1/sessions", json=fields)
    assert answer.status_code == 201, answer.text
    summary = SessionSummary.model_validate(answer.json())
    assert answer.headers["location"] == f"/v1/sessions/{summary.id}"
    return summary.id


async def post_turn(house: House, session_id: str, fields: dict[str, Any], **headers: str) -> httpx.Response:
    return await house.http.post(f"/v1/sessions/{session_id}/turns", json=fields, headers=headers)


async def say(house: House, session_id: str, **fields: object) -> Job:
    """Add a turn and wait for its end."""
    answer = await post_turn(house, session_id, fields, Prefer="wait=60")
    assert answer.status_code == 200, answer.text
    job = Job.model_validate(answer.json())
    assert job.status is JobStatus.SUCCEEDED
    return job


async def read(house: House, session_id: str) -> Session:
    answer = await house.http.get(f"/v1/sessions/{session_id}")
    assert answer.status_code == 200, answer.text
    return Session.model_validate(answer.json())


async def test_a_session_is_made_listed_and_deleted(house: House) -> None:
    first, second = await begin(house, name="the house"), await begin(house)
    listed = SessionList.model_validate((await house.http.get("/v1/sessions", params={"limit": 1})).json())
    assert [session.id for session in listed.data] == [second]
    rest = SessionList.model_validate(
        (await house.http.get("/v1/sessions", params={"after": listed.next or ""})).json()
    )
    assert [(session.id, session.name) for session in rest.data] == [(first, "the house")]
    assert (await house.http.delete(f"/v1/sessions/{first}")).status_code == 204
    for answer in (await house.http.get(f"/v1/sessions/{first}"), await house.http.delete(f"/v1/sessions/{first}")):
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
    assert (await house.http.post("/v1/sessions")).status_code == 201  # without a body


async def test_a_conversation_is_a_tree_of_jobs(house: House) -> None:
    session_id = await begin(house)
    house_job = await say(house, session_id, instruction="draw a house", seed=3, size="64x128")
    assert (house_job.session_id, house_job.turn) == (session_id, 1)
    roof = await say(house, session_id, instruction="with a red roof")
    await say(house, session_id, instruction="at night", parent=1)
    again = await say(house, session_id, rerender=2, seed=99)
    session = await read(house, session_id)
    assert [(turn.id, turn.parent, turn.history) for turn in session.turns] == [
        (1, None, []),
        (2, 1, [1]),
        (3, 1, [1]),
        (4, 1, [1]),
    ]
    assert [step.instruction for step in roof.request.history] == ["draw a house"]
    assert (roof.request.size, roof.request.seed != 3) == ("64x128", True)
    turns = {turn.id: turn for turn in session.turns}
    assert (turns[2].images, turns[2].prompt) == (roof.images, roof.prompt)
    assert (turns[4].request.seed, turns[4].rerender_of) == (99, 2)
    assert again.prompt is not None
    assert roof.prompt is not None
    assert again.prompt.text == roof.prompt.text
    assert again.images[0].sha256 != roof.images[0].sha256
    assert len([claim for claim in house.prompt.claims if claim.job.id == again.id]) == 0


async def test_words_find_an_earlier_picture(house: House) -> None:
    session_id = await begin(house)
    first = await say(house, session_id, instruction="draw a house")
    await say(house, session_id, instruction="with a red roof")
    job = await say(house, session_id, task="similar", instruction="like the first one, in blue")
    assert job.request.image == first.images[0].id
    source = (await read(house, session_id)).turns[2].source
    assert source is not None
    assert (source.turn, source.chosen_by) == (1, "words")


async def test_a_turn_can_be_streamed(house: House) -> None:
    session_id = await begin(house)
    answer = await post_turn(house, session_id, {"instruction": "draw a house"}, Accept="text/event-stream")
    assert answer.text.rstrip().splitlines()[-2] == "event: job.succeeded"
    assert (await read(house, session_id)).turns[0].status is JobStatus.SUCCEEDED


async def test_a_turn_waits_for_the_one_that_it_goes_on_from(house: House) -> None:
    session_id = await begin(house)
    await say(house, session_id, instruction="draw a house")
    house.prompt.gate.clear()
    under_way = await post_turn(house, session_id, {"instruction": "with a red roof"})
    assert (under_way.status_code, under_way.headers["location"]) == (202, f"/v1/jobs/{under_way.json()['id']}")
    refused = await post_turn(house, session_id, {"instruction": "at night"})
    assert (refused.status_code, refused.json()["code"]) == (409, "turn_under_way")
    assert (await post_turn(house, session_id, {"instruction": "at night", "parent": 1})).status_code == 202
    house.prompt.gate.set()


async def test_a_canceled_turn_is_left_out_of_what_follows(house: House) -> None:
    session_id = await begin(house)
    await say(house, session_id, instruction="draw a house")
    house.prompt.gate.clear()
    job_id = (await post_turn(house, session_id, {"instruction": "with a red roof"})).json()["id"]
    await house.http.post(f"/v1/jobs/{job_id}/cancel")
    house.prompt.gate.set()
    await say(house, session_id, instruction="at night")
    session = await read(house, session_id)
    assert [(turn.parent, turn.status, turn.history) for turn in session.turns[1:]] == [
        (1, JobStatus.CANCELED, [1]),
        (2, JobStatus.SUCCEEDED, [1]),
    ]


async def test_the_same_key_makes_one_turn_also_when_others_came_between(house: House) -> None:
    session_id = await begin(house)
    key = {"Idempotency-Key": "k"}
    first = await post_turn(house, session_id, {"instruction": "draw a house"}, Prefer="wait=60", **key)
    await say(house, session_id, instruction="at night")
    again = await post_turn(house, session_id, {"instruction": "draw a house"}, **key)
    assert again.headers["idempotency-replayed"] == "true"
    assert again.json()["id"] == first.json()["id"]
    other_body = await post_turn(house, session_id, {"instruction": "draw a hut"}, **key)
    other_session = await post_turn(house, await begin(house), {"instruction": "draw a house"}, **key)
    other_call = await house.http.post("/v1/generations", json={"instruction": "draw a house"}, headers=key)
    for refused in (other_body, other_session, other_call):
        assert (refused.status_code, refused.json()["code"]) == (422, "idempotency_conflict")
    assert (await read(house, session_id)).turn_count == 2


async def test_a_key_finds_its_turn_when_the_session_is_gone(house: House) -> None:
    session_id = await begin(house)
    key = {"Idempotency-Key": "k"}
    first = await post_turn(house, session_id, {"instruction": "draw a house"}, **key)
    await house.http.delete(f"/v1/sessions/{session_id}")
    again = await post_turn(house, session_id, {"instruction": "draw a house"}, **key)
    assert (again.status_code, again.json()["id"]) == (202, first.json()["id"])
    refused = await post_turn(house, session_id, {"instruction": "draw a hut"}, **{"Idempotency-Key": "other"})
    assert refused.status_code == 404


async def test_the_same_key_makes_one_session(house: House) -> None:
    headers = {"Idempotency-Key": "k"}
    answers = await asyncio.gather(
        *(house.http.post("/v1/sessions", json={"name": "a"}, headers=headers) for _ in range(10))
    )
    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.json()["id"] for answer in answers}) == 1


async def test_a_session_is_bounded(house: House) -> None:
    session_id = await begin(house)
    verbatim = {"instruction": "a house", "prompt_mode": "verbatim", "parent": 0}
    answers = await asyncio.gather(*(post_turn(house, session_id, verbatim) for _ in range(MAX_TURNS + 5)))
    assert sorted(answer.status_code for answer in answers) == [202] * MAX_TURNS + [409] * 5
    assert {answer.json()["code"] for answer in answers if answer.status_code == 409} == {"session_full"}
    for _ in range(4):
        await begin(house)
    assert (await house.http.post("/v1/sessions")).json()["code"] == "too_many_sessions"


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"instruction": "a", "parent": 7}, "parent"),
        ({"instruction": "a", "parent": -1}, "parent"),
        ({"instruction": "a", "refers_to": {"turn": 0}}, "refers_to.turn"),
        ({"instruction": "a", "sise": "64x64"}, "sise"),
        ({}, "instruction"),
    ],
)
async def test_a_turn_that_makes_no_sense_is_refused_by_name(house: House, fields: dict[str, Any], field: str) -> None:
    refused = await post_turn(house, await begin(house), fields)
    assert (refused.status_code, [problem["field"] for problem in refused.json()["errors"]]) == (422, [field])


class TestTenants:
    """Sessions belong to tenants."""

    @pytest.fixture
    def settings(self, settings: Settings) -> Settings:
        """Return the settings of a gateway that asks for keys."""
        return with_keys(settings)

    @pytest.fixture
    async def views(self, house: House, tmp_path: Path) -> AsyncIterator[tuple[House, House]]:
        """Yield the house as two tenants see it."""
        keys = [new_key(tmp_path, name) for name in ("alice", "bob")]
        async with as_holder(house, keys[0]) as alice, as_holder(house, keys[1]) as bob:
            async with asyncio.timeout(60):
                while (await bob.http.get("/v1/models")).status_code != 200:
                    await asyncio.sleep(0.05)
            yield alice, bob

    async def test_another_tenant_s_session_answers_as_none(self, views: tuple[House, House]) -> None:
        alice, bob = views
        session_id = await begin(alice)
        nowhere = f"ses_{'0' * 32}"
        for name in (session_id, nowhere):
            answers = [
                await bob.http.get(f"/v1/sessions/{name}"),
                await bob.http.delete(f"/v1/sessions/{name}"),
                await post_turn(bob, name, {"instruction": "draw a house"}),
            ]
            assert {(answer.status_code, answer.json()["detail"]) for answer in answers} == {
                (404, "There is no session of that id.")
            }
        assert (await bob.http.get("/v1/sessions")).json()["data"] == []
        assert (await read(alice, session_id)).turns == []


async def test_pictures_of_a_session_are_kept_for_as_long_as_it_is_used(house: House) -> None:
    session_id = await begin(house)
    image_id = (await say(house, session_id, instruction="draw a house")).images[0].id
    file = next(house.artifacts.root.rglob(image_id))  # type: ignore[attr-defined]  # it is a folder's
    long_ago_s = 1_000_000
    os.utime(file, (long_ago_s, long_ago_s))
    await say(house, session_id, instruction="a boat", parent=0)
    assert file.stat().st_mtime > long_ago_s


async def test_no_stage_is_passed_twice_when_a_turn_is_rendered_once_more(house: House) -> None:
    session_id = await begin(house)
    await say(house, session_id, instruction="draw a house")
    job = await say(house, session_id, rerender=1)
    assert (job.stage, job.timings.prompt_s) == (Stage.RENDER, None)
