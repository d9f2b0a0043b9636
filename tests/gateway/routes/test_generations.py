"""`POST /v1/generations`: the three ways of answering, idempotency, and clients that leave."""

import asyncio
import json

import httpx
import pytest

from clients.sse import messages
from shared.contracts import EventType, Job, JobStatus, Phase, Stage
from shared.settings import GatewaySettings, QueueSettings
from tests.gateway.conftest import House, until

REQUEST = {"instruction": "a red house"}


async def test_accepted_request_answers_202_with_location_and_record(house: House) -> None:
    house.prompt.gate.clear()
    response = await house.http.post("/v1/generations", json=REQUEST)
    assert response.status_code == 202
    job = Job.model_validate(response.json())
    assert response.headers["location"] == f"/v1/jobs/{job.id}" == job.links["self"]
    assert job.status in {JobStatus.QUEUED, JobStatus.RUNNING}
    assert job.stage is Stage.PROMPT
    assert (await house.http.get(response.headers["location"])).json()["id"] == job.id


async def test_what_the_request_left_open_is_filled_from_the_workers_announcement(house: House) -> None:
    job = await house.submit()
    assert job.request.model == "painter"
    assert job.request.size == "128x128"
    assert job.request.num_inference_steps == 4
    assert job.request.guidance_scale == 7.5
    assert job.request.scheduler == "ddim"
    assert job.request.seed is not None
    assert (await house.submit()).request.seed != job.request.seed


async def test_waiting_client_gets_the_finished_job(house: House) -> None:
    response = await house.http.post("/v1/generations", json=REQUEST, headers={"Prefer": "wait=60"})
    assert response.status_code == 200
    assert response.headers["preference-applied"] == "wait=60"
    job = Job.model_validate(response.json())
    assert job.status is JobStatus.SUCCEEDED
    assert job.prompt is not None
    assert job.prompt.text == "a picture of (a red house)"
    picture = await house.http.get(job.images[0].url)
    assert picture.content.startswith(b"\x89PNG")


async def test_waiting_ends_with_202_when_its_time_is_over(house: House) -> None:
    house.render.gate.clear()
    response = await house.http.post("/v1/generations", json=REQUEST, headers={"Prefer": "wait=0.2"})
    assert response.status_code == 202
    assert response.headers["preference-applied"] == "wait=0.2"
    job = Job.model_validate(response.json())
    assert job.status not in {JobStatus.SUCCEEDED, JobStatus.CANCELED}
    house.render.gate.set()
    await until(lambda: _has_status(house, job.id, JobStatus.SUCCEEDED))


async def test_waiting_ends_early_when_the_job_is_held_for_approval(house: House) -> None:
    response = await house.http.post(
        "/v1/generations", json={**REQUEST, "approve": True}, headers={"Prefer": "wait=300"}
    )
    assert response.status_code == 202
    job = Job.model_validate(response.json())
    assert job.status is JobStatus.AWAITING_APPROVAL
    assert job.links["approve"] == f"/v1/jobs/{job.id}/approve"


async def test_wait_of_zero_answers_at_once(house: House) -> None:
    house.prompt.gate.clear()
    response = await house.http.post("/v1/generations", json=REQUEST, headers={"Prefer": "wait=0"})
    assert response.status_code == 202
    assert response.headers["preference-applied"] == "wait=0"


class TestShortLimit:
    @pytest.fixture
    def gateway_settings(self) -> GatewaySettings:
        return GatewaySettings(metrics_port=0, max_wait_s=0.2)

    async def test_wait_is_bounded_by_the_setting(self, house: House) -> None:
        house.prompt.gate.clear()
        response = await house.http.post("/v1/generations", json=REQUEST, headers={"Prefer": "wait=3600"})
        assert response.status_code == 202
        assert response.headers["preference-applied"] == "wait=0.2"


async def test_stream_answer_holds_the_events_from_the_first_to_the_last(house: House) -> None:
    async with house.http.stream(
        "POST", "/v1/generations", json=REQUEST, headers={"Accept": "text/event-stream"}
    ) as response:
        assert response.status_code == 200
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        lines = [line async for line in response.aiter_lines()]
    assert lines[0].startswith("retry: ")
    events = list(messages(lines))
    assert events[0].event == EventType.QUEUED
    assert json.loads(events[0].data) == {"stage": "prompt"}
    assert events[-1].event == EventType.SUCCEEDED
    deltas = [json.loads(event.data)["text"] for event in events if event.event == EventType.PROMPT_DELTA]
    assert "".join(deltas) == "a picture of (a red house)"
    job = await house.job(response.headers["location"].rpartition("/")[2])
    assert job.status is JobStatus.SUCCEEDED


async def test_verbatim_prompt_goes_straight_to_rendering(house: House) -> None:
    response = await house.http.post(
        "/v1/generations", json={**REQUEST, "prompt_mode": "verbatim", "n": 2, "seed": 5}, headers={"Prefer": "wait=60"}
    )
    job = Job.model_validate(response.json())
    assert job.status is JobStatus.SUCCEEDED
    assert job.prompt is not None
    assert (job.prompt.source, job.prompt.text) == ("verbatim", "a red house")
    assert [image.seed for image in job.images] == [5, 6]
    assert not house.prompt.claims


async def test_prompt_task_ends_with_the_prompt(house: House) -> None:
    response = await house.http.post(
        "/v1/generations", json={**REQUEST, "task": "prompt"}, headers={"Prefer": "wait=60"}
    )
    job = Job.model_validate(response.json())
    assert job.status is JobStatus.SUCCEEDED
    assert job.prompt is not None
    assert job.images == []
    assert not house.render.claims


async def test_same_key_and_body_give_the_same_job(house: House) -> None:
    headers = {"Idempotency-Key": "order-1138"}
    first = await house.http.post("/v1/generations", json=REQUEST, headers=headers)
    # The same request, spelled differently.
    again = await house.http.post(
        "/v1/generations",
        content=b'{ "instruction" : "a red \\u0068ouse" }',
        headers={**headers, "Content-Type": "application/json"},
    )
    assert (first.status_code, again.status_code) == (202, 202)
    assert first.json()["id"] == again.json()["id"]
    assert "idempotency-replayed" not in first.headers
    assert again.headers["idempotency-replayed"] == "true"


async def test_concurrent_posts_with_one_key_make_one_job(house: House) -> None:
    answers = await asyncio.gather(
        *(house.http.post("/v1/generations", json=REQUEST, headers={"Idempotency-Key": "k"}) for _ in range(20))
    )
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.json()["id"] for answer in answers}) == 1


async def test_key_that_came_before_finds_its_job_when_no_worker_is_there_any_more(house: House) -> None:
    headers = {"Idempotency-Key": "order-1138", "Prefer": "wait=60"}
    first = await house.http.post("/v1/generations", json=REQUEST, headers=headers)
    for worker in (house.prompt, house.render):
        worker.phase = Phase.DRAINING
        await house.queue.announce(worker.announcement())

    async def are_gone() -> bool:
        return (await house.http.post("/v1/generations", json=REQUEST)).status_code == 503

    await until(are_gone)
    again = await house.http.post("/v1/generations", json=REQUEST, headers=headers)
    assert again.status_code == 200
    assert again.json()["id"] == first.json()["id"]
    assert again.headers["idempotency-replayed"] == "true"
    other = await house.http.post("/v1/generations", json={"instruction": "a blue house"}, headers=headers)
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_conflict")
    new = await house.http.post("/v1/generations", json=REQUEST, headers={"Idempotency-Key": "order-1139"})
    assert (new.status_code, new.json()["code"]) == (503, "no_worker")


async def test_same_key_with_another_body_is_refused(house: House) -> None:
    headers = {"Idempotency-Key": "order-1138"}
    await house.http.post("/v1/generations", json=REQUEST, headers=headers)
    response = await house.http.post("/v1/generations", json={"instruction": "a blue house"}, headers=headers)
    assert response.status_code == 422
    assert response.json()["code"] == "idempotency_conflict"


@pytest.mark.parametrize("key", ["", "two words", "k" * 256, "ключ"])
async def test_unusable_idempotency_key_is_refused_and_nothing_is_queued(house: House, key: str) -> None:
    response = await house.http.post("/v1/generations", json=REQUEST, headers={b"Idempotency-Key": key.encode()})
    assert response.status_code == 422
    assert response.json()["errors"][0]["field"] == "Idempotency-Key"
    assert await house.is_empty()


async def _has_status(house: House, job_id: str, status: JobStatus) -> bool:
    return (await house.job(job_id)).status is status


async def _only_job_id(house: House) -> str:
    await until(lambda: bool(house.prompt.claims))
    return house.prompt.claims[0].job.id


async def test_client_that_leaves_a_waiting_call_cancels_its_job(house: House) -> None:
    house.prompt.gate.clear()
    call = asyncio.create_task(house.http.post("/v1/generations", json=REQUEST, headers={"Prefer": "wait=60"}))
    job_id = await _only_job_id(house)
    call.cancel()  # closes the connection
    await until(lambda: _has_status(house, job_id, JobStatus.CANCELED))
    await until(lambda: house.prompt.lost == [job_id])


async def test_client_that_leaves_the_stream_of_its_own_post_cancels_its_job(house: House) -> None:
    house.prompt.gate.clear()
    async with house.http.stream(
        "POST", "/v1/generations", json=REQUEST, headers={"Accept": "text/event-stream"}
    ) as response:
        lines = response.aiter_lines()
        while await anext(lines) != "event: job.started":
            pass
    await until(lambda: _has_status(house, house.prompt.claims[0].job.id, JobStatus.CANCELED))


async def test_client_that_leaves_with_an_idempotency_key_finds_its_job_when_it_asks_again(house: House) -> None:
    house.prompt.gate.clear()
    headers = {"Prefer": "wait=60", "Idempotency-Key": "order-1138"}
    call = asyncio.create_task(house.http.post("/v1/generations", json=REQUEST, headers=headers))
    job_id = await _only_job_id(house)
    call.cancel()
    await until(lambda: call.done())
    house.prompt.gate.set()
    response = await house.http.post("/v1/generations", json=REQUEST, headers=headers)
    assert response.status_code == 200
    assert response.json()["id"] == job_id
    assert response.json()["status"] == "succeeded"


async def test_asynchronous_job_and_its_followers_leaving_do_not_cancel(house: House) -> None:
    house.prompt.gate.clear()
    job = await house.submit()
    async with house.http.stream("GET", f"/v1/jobs/{job.id}/events") as response:
        await anext(response.aiter_lines())
    house.prompt.gate.set()
    await until(lambda: _has_status(house, job.id, JobStatus.SUCCEEDED))


async def test_unknown_model_is_refused_with_the_list_of_those_served(house: House) -> None:
    response = await house.http.post("/v1/generations", json={**REQUEST, "model": "sdxl"})
    assert response.status_code == 422
    assert response.json()["code"] == "model_not_served"
    assert response.json()["served_models"] == ["painter"]
    assert await house.is_empty()


async def test_without_workers_the_answer_is_503_no_worker_with_retry_after(http: httpx.AsyncClient) -> None:
    response = await http.post("/v1/generations", json=REQUEST)
    assert response.status_code == 503
    assert response.json()["code"] == "no_worker"
    assert int(response.headers["retry-after"]) > 0


async def test_worker_that_has_just_come_is_seen_by_the_next_request(house: House) -> None:
    newcomer = house.render.models[0].model_copy(update={"name": "newcomer", "default": False})
    house.render.models.append(newcomer)
    await house.queue.announce(house.render.announcement())
    await asyncio.sleep(0.2)  # a refusal asks for a new look at most ten times a second
    assert (await house.submit(model="newcomer")).request.model == "newcomer"


class TestFullQueue:
    @pytest.fixture
    def queue_settings(self) -> QueueSettings:
        return QueueSettings(max_queued=1)

    async def test_full_queue_answers_429_with_retry_after(self, house: House) -> None:
        response = await house.fill()
        assert response.status_code == 429
        assert response.json()["code"] == "queue_full"
        assert int(response.headers["retry-after"]) > 0
