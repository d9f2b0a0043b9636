"""`/v1/jobs` and `/v1/jobs/{id}`: list, record, events with replay, cancel and approve."""

import asyncio

import httpx
import pytest
from pydantic import TypeAdapter

from clients.sse import Message, messages
from shared.contracts import Event, EventType, Job, JobList, JobStatus, Stage
from shared.settings import GatewaySettings
from tests.gateway.conftest import House, until

_EVENTS = TypeAdapter(list[Event])
NO_JOB = "job_00000000000000000000000000000000"


async def _events(house: House, job_id: str, **headers: str) -> list[Message]:
    async with house.http.stream("GET", f"/v1/jobs/{job_id}/events", headers=headers) as response:
        assert response.status_code == 200
        return list(messages([line async for line in response.aiter_lines()]))


async def _finished(house: House, **request: object) -> Job:
    job = await house.submit(**request)
    await until(lambda: _is(house, job.id, JobStatus.SUCCEEDED))
    return await house.job(job.id)


async def _is(house: House, job_id: str, status: JobStatus) -> bool:
    return (await house.job(job_id)).status is status


@pytest.mark.parametrize("job_id", [NO_JOB, "x", "..", "a:b", "{llmga}:counters", "%00", "j" * 65, "a%2Fb", "日本"])
@pytest.mark.parametrize(
    ("method", "tail"), [("GET", ""), ("GET", "/events"), ("POST", "/cancel"), ("POST", "/approve")]
)
async def test_job_that_does_not_exist_is_not_found(
    http: httpx.AsyncClient, job_id: str, method: str, tail: str
) -> None:
    response = await http.request(method, f"/v1/jobs/{job_id}{tail}")
    assert response.status_code in {404, 405}
    assert response.json()["code"] in {"not_found", "method_not_allowed"}


async def test_record_shows_place_progress_and_times(house: House) -> None:
    house.render.gate.clear()
    house.prompt.gate.clear()
    for _ in range(8):
        await house.submit()
    waiting = await house.submit()
    await until(lambda: len(house.prompt.claims) == 8)
    assert (await house.job(waiting.id)).queue is not None
    house.prompt.gate.set()
    house.render.gate.set()
    await until(lambda: _is(house, waiting.id, JobStatus.SUCCEEDED))
    job = await house.job(waiting.id)
    assert job.progress is not None
    assert job.progress.step == job.progress.total_steps == 4
    assert job.timings.total_s is not None


async def test_events_replay_from_any_point_without_loss_or_repetition(house: House) -> None:
    job = await _finished(house, n=2)
    every = await _events(house, job.id)
    assert every[0].event == EventType.QUEUED
    assert every[-1].event == EventType.SUCCEEDED
    for position, event in enumerate(every):
        assert await _events(house, job.id, **{"Last-Event-ID": event.id}) == every[position + 1 :]


async def test_reconnecting_in_the_middle_of_a_running_job_misses_and_repeats_nothing(house: House) -> None:
    house.render.gate.clear()
    job = await house.submit()
    await until(lambda: bool(house.render.claims))
    lines: list[str] = []
    async with house.http.stream("GET", f"/v1/jobs/{job.id}/events") as response:
        async for line in response.aiter_lines():
            lines.append(line)
            if line == "" and "event: prompt.delta" in lines:
                break  # in the middle of the prompt
    first = list(messages(lines))
    reconnected = asyncio.create_task(_events(house, job.id, **{"Last-Event-ID": first[-1].id}))
    house.render.gate.set()
    rest = await reconnected
    assert first + rest == await _events(house, job.id)


async def test_query_parameter_replays_as_the_header_does_and_the_header_wins(house: House) -> None:
    job = await _finished(house)
    every = await _events(house, job.id)
    url = f"/v1/jobs/{job.id}/events"
    listed = await house.http.get(url, params={"after": every[3].id}, headers={"Accept": "application/json"})
    assert [event.id for event in _EVENTS.validate_json(listed.content)] == [event.id for event in every[4:]]
    both = await house.http.get(
        url, params={"after": every[0].id}, headers={"Accept": "application/json", "Last-Event-ID": every[3].id}
    )
    assert both.json() == listed.json()


async def test_list_of_a_running_job_holds_the_events_so_far(house: House) -> None:
    house.prompt.gate.clear()
    job = await house.submit()
    await until(lambda: bool(house.prompt.claims))
    response = await house.http.get(f"/v1/jobs/{job.id}/events", headers={"Accept": "application/json"})
    types = [event.type for event in _EVENTS.validate_json(response.content)]
    assert types == [EventType.QUEUED, EventType.STARTED, EventType.PROMPT_DELTA]


@pytest.mark.parametrize("last", ["x", "1", "1-", "-1", "1-2-3", "9" * 40 + "-0", "0x1-0"])
async def test_id_that_is_no_events_is_refused(house: House, last: str) -> None:
    job = await house.submit()
    for options in ({"headers": {"Last-Event-ID": last}}, {"params": {"after": last}}):
        response = await house.http.get(f"/v1/jobs/{job.id}/events", **options)  # type: ignore[arg-type]  # either one
        assert response.status_code == 422
        assert response.json()["errors"][0]["code"] == "not_an_event_id"


async def test_many_followers_get_the_same_events(house: House) -> None:
    house.prompt.gate.clear()
    job = await house.submit()
    following = [asyncio.create_task(_events(house, job.id)) for _ in range(100)]
    await until(lambda: len(house.server.server_state.connections) >= 100)
    house.prompt.gate.set()
    everyone = await asyncio.gather(*following)
    assert everyone[0][-1].event == EventType.SUCCEEDED
    assert all(events == everyone[0] for events in everyone)


class TestIdleStream:
    @pytest.fixture
    def gateway_settings(self) -> GatewaySettings:
        return GatewaySettings(metrics_port=0, sse_ping_s=0.05)

    async def test_idle_stream_carries_comments(self, house: House) -> None:
        house.prompt.gate.clear()
        job = await house.submit()
        async with house.http.stream("GET", f"/v1/jobs/{job.id}/events") as response:
            lines = response.aiter_lines()
            pings = 0
            while pings < 3:
                pings += await anext(lines) == ": ping"


async def test_cancel_is_final_at_once_and_stops_the_worker(house: House) -> None:
    house.render.gate.clear()
    job = await house.submit()
    await until(lambda: bool(house.render.claims))
    response = await house.http.post(f"/v1/jobs/{job.id}/cancel")
    assert response.status_code == 200
    assert Job.model_validate(response.json()).status is JobStatus.CANCELED
    await until(lambda: house.render.lost == [job.id])
    again = await house.http.post(f"/v1/jobs/{job.id}/cancel")
    assert (again.status_code, again.json()) == (200, response.json())
    assert (await _events(house, job.id))[-1].event == EventType.CANCELED


async def test_cancel_of_a_finished_job_changes_nothing(house: House) -> None:
    job = await _finished(house)
    response = await house.http.post(f"/v1/jobs/{job.id}/cancel", json={"anything": 1})
    assert response.status_code == 200
    assert response.json()["status"] == "succeeded"


async def _page(house: House, **parameters: str | int) -> JobList:
    response = await house.http.get("/v1/jobs", params=parameters)
    assert response.status_code == 200, response.text
    return JobList.model_validate(response.json())


async def test_jobs_are_listed_in_pages_the_latest_first(house: House) -> None:
    done = await _finished(house)
    house.prompt.gate.clear()
    running, waiting = await house.submit(), await house.submit(task="prompt")
    page = await _page(house)
    assert [job.id for job in page.data] == [waiting.id, running.id, done.id]
    assert page.next is None
    assert page.data[2] == await house.job(done.id)  # with its links, too
    first = await _page(house, limit=2)
    assert first.next is not None
    assert [job.id for job in (await _page(house, limit=2, after=first.next)).data] == [done.id]
    assert [job.id for job in (await _page(house, status="succeeded")).data] == [done.id]
    assert [job.id for job in (await _page(house, task="prompt")).data] == [waiting.id]


@pytest.mark.parametrize(
    ("parameter", "value", "code"),
    [
        ("status", "lost", "not_offered"),
        ("status", "", "not_offered"),
        ("task", "paint", "not_offered"),
        ("limit", "0", "out_of_range"),
        ("limit", "101", "out_of_range"),
        ("limit", "9" * 5_000, "wrong_type"),
        ("limit", "many", "wrong_type"),
        ("after", "x", "not_a_cursor"),
        ("after", "-1", "not_a_cursor"),
        ("after", "inf", "not_a_cursor"),
        ("after", "1" * 17, "not_a_cursor"),
        ("after", "\u0661", "not_a_cursor"),
        ("stauts", "failed", "unknown_field"),
    ],
    ids=lambda value: str(value)[:16],
)
async def test_listing_that_makes_no_sense_is_refused(
    http: httpx.AsyncClient, parameter: str, value: str, code: str
) -> None:
    response = await http.get("/v1/jobs", params={parameter: value})
    assert response.status_code == 422
    (problem,) = response.json()["errors"]
    assert (problem["field"], problem["code"]) == (parameter, code)


async def test_estimate_is_told_once_a_job_has_ended(house: House) -> None:
    await _finished(house)
    house.render.gate.clear()
    job = await house.submit()
    assert job.eta_s is not None
    await until(lambda: len(house.render.claims) == 2)
    running = await house.job(job.id)
    assert (running.queue, running.eta_s is None) == (None, False)
    house.render.gate.set()
    await until(lambda: _is(house, job.id, JobStatus.SUCCEEDED))
    assert (await house.job(job.id)).eta_s is None


async def _held(house: House) -> Job:
    job = await house.submit(approve=True)
    await until(lambda: _is(house, job.id, JobStatus.AWAITING_APPROVAL))
    return job


@pytest.mark.parametrize("body", [None, {}, {"prompt": None}])
async def test_approved_job_is_rendered_with_its_prompt(house: House, body: dict[str, object] | None) -> None:
    job = await _held(house)
    url = f"/v1/jobs/{job.id}/approve"
    response = await (house.http.post(url) if body is None else house.http.post(url, json=body))
    assert response.status_code == 200
    assert response.json()["stage"] == Stage.RENDER
    await until(lambda: _is(house, job.id, JobStatus.SUCCEEDED))
    prompt = (await house.job(job.id)).prompt
    assert prompt is not None
    assert (prompt.source, prompt.text) == ("mllm", "a picture of (a red house)")


async def test_approved_job_is_rendered_with_the_edited_prompt(house: House) -> None:
    job = await _held(house)
    for _ in range(2):  # idempotent
        response = await house.http.post(f"/v1/jobs/{job.id}/approve", json={"prompt": "a blue house"})
        assert response.status_code == 200
    await until(lambda: _is(house, job.id, JobStatus.SUCCEEDED))
    prompt = (await house.job(job.id)).prompt
    assert prompt is not None
    assert (prompt.source, prompt.text) == ("edited", "a blue house")


async def test_job_that_is_not_held_cannot_be_approved(house: House) -> None:
    house.prompt.gate.clear()
    job = await house.submit()
    response = await house.http.post(f"/v1/jobs/{job.id}/approve")
    assert response.status_code == 409
    assert response.json()["code"] == "not_awaiting_approval"


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"prompt": ""}, "too_short"),
        ({"prompt": "  "}, "not_text"),
        ({"prompt": "x" * 100_000}, "too_long"),
        ({"prompt": 3}, "wrong_type"),
        ({"text": "a"}, "unknown_field"),
    ],
    ids=lambda value: str(value)[:24],
)
async def test_bad_approval_is_refused_and_the_job_stays_held(house: House, body: dict[str, object], code: str) -> None:
    job = await _held(house)
    response = await house.http.post(f"/v1/jobs/{job.id}/approve", json=body)
    assert response.status_code == 422
    assert response.json()["errors"][0]["code"] == code
    assert await _is(house, job.id, JobStatus.AWAITING_APPROVAL)
