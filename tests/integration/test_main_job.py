"""The main job by plain HTTP, as the README shows it."""

import hashlib
import io
import json
from collections.abc import Iterator
from typing import Any

import pytest
from PIL import Image

from clients.sse import Message, messages
from shared.contracts import Job, JobStatus, Stage
from tests.processes import until
from tests.system import System

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

LONG: dict[str, Any] = {
    "num_inference_steps": 150,
    "n": 8,
}  # some ten seconds here, so that there is a middle to act in
TERMINAL = {"job.succeeded", "job.failed", "job.canceled"}


def follow(system: System, job_id: str, after: str | None = None) -> Iterator[Message]:
    headers = {"Last-Event-ID": after} if after else {}
    with system.http.stream("GET", f"/v1/jobs/{job_id}/events", headers=headers) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        yield from messages(answer.iter_lines())


def record(system: System, job_id: str) -> Job:
    return Job.model_validate(system.http.get(f"/v1/jobs/{job_id}").json())


def data(message: Message) -> dict[str, Any]:
    return dict(json.loads(message.data))


def test_words_become_a_prompt_and_the_prompt_becomes_a_picture(system: System) -> None:
    job_id = system.submit(seed=7, num_inference_steps=6)
    events = list(follow(system, job_id))
    job = record(system, job_id)

    kinds = [message.event for message in events]
    assert [kind for kind in kinds if kind not in ("prompt.delta", "render.progress")] == [
        "job.queued",
        "job.started",
        "prompt.completed",
        "job.queued",
        "job.started",
        "image.completed",
        "job.succeeded",
    ]
    written = "".join(data(message)["text"] for message in events if message.event == "prompt.delta")
    assert job.prompt is not None
    assert written.strip() == job.prompt.text
    assert (job.prompt.source, job.prompt.model) == ("mllm", "llmga-tiny")
    assert "<" not in written, "only prompt text goes to the client, nothing of the protocol"
    steps = [data(message)["step"] for message in events if message.event == "render.progress"]
    assert steps == sorted(set(steps))
    assert steps[-1] == 6

    assert job.status is JobStatus.SUCCEEDED
    assert (job.request.seed, job.request.model) == (7, "llmga-tiny-sd15")
    assert job.timings.prompt_s is not None
    assert job.timings.render_s is not None
    (image,) = job.images
    answer = system.http.get(image.url)
    assert answer.headers["content-type"] == "image/png"
    assert hashlib.sha256(answer.content).hexdigest() == image.sha256
    with Image.open(io.BytesIO(answer.content)) as picture:
        assert picture.size == (image.width, image.height)
        assert len(picture.convert("RGB").getcolors(image.width * image.height) or []) > 1
        assert job.prompt.text in picture.info["llmga"]


def test_a_picture_becomes_a_similar_one(system: System) -> None:
    file = io.BytesIO()
    Image.linear_gradient("L").convert("RGB").resize((96, 64)).save(file, "JPEG")
    answer = system.http.post("/v1/images", content=file.getvalue(), headers={"Content-Type": "image/jpeg"})
    assert answer.status_code == 201, answer.text
    job_id = system.submit("draw it at night", task="similar", image=answer.json()["id"], seed=3, num_inference_steps=2)
    kinds = [message.event for message in follow(system, job_id)]
    assert kinds[-1] == "job.succeeded"
    assert "prompt.completed" in kinds
    job = record(system, job_id)
    assert job.prompt is not None
    assert (job.prompt.source, job.prompt.truncated_tokens) == ("mllm", 0)
    assert job.prompt.prompt_tokens is not None
    assert job.request.max_prompt_tokens == 225
    assert len(job.images) == 1


def test_the_same_request_gives_the_same_bytes(system: System) -> None:
    request: dict[str, Any] = {"prompt_mode": "verbatim", "seed": 11, "num_inference_steps": 4}
    ids = [system.submit(**request), system.submit(**request)]
    for job_id in ids:
        list(follow(system, job_id))
    first, second = (record(system, job_id).images for job_id in ids)
    assert first[0].sha256 == second[0].sha256


def test_a_reconnect_in_the_middle_misses_nothing_and_repeats_nothing(system: System) -> None:
    job_id = system.submit(seed=1, num_inference_steps=40)
    seen: list[Message] = []
    for message in follow(system, job_id):
        seen.append(message)
        if message.event == "render.progress" and data(message)["step"] >= 5:
            break  # the connection is closed here
    assert seen[-1].event == "render.progress"
    seen += follow(system, job_id, after=seen[-1].id)
    assert seen == list(follow(system, job_id))
    assert seen[-1].event == "job.succeeded"


def test_a_canceled_job_takes_no_further_step(system: System) -> None:
    job_id = system.submit(**LONG)
    events = follow(system, job_id)
    seen = []
    for message in events:
        seen.append(message)
        if message.event == "render.progress":
            break
    answer = system.http.post(f"/v1/jobs/{job_id}/cancel")
    assert answer.json()["status"] == "canceled"
    seen += events
    assert seen[-1].event == "job.canceled"
    until(lambda: [w.running for w in system.workers() if w.stage is Stage.RENDER] == [0, 0], what="idle workers")
    assert list(follow(system, job_id)) == seen, "nothing follows the cancel"
    progress = record(system, job_id).progress
    assert progress is not None
    assert progress.step < progress.total_steps


def test_a_job_can_be_waited_for_in_one_call(system: System) -> None:
    answer = system.http.post(
        "/v1/generations", json={"instruction": "a red fox", "task": "prompt"}, headers={"Prefer": "wait=300"}
    )
    job = Job.model_validate(answer.json())
    assert (answer.status_code, job.status, job.images) == (200, JobStatus.SUCCEEDED, [])
    assert job.prompt is not None
    assert job.prompt.text


def test_a_held_prompt_is_rendered_as_edited(system: System) -> None:
    job_id = system.submit(approve=True, num_inference_steps=2)
    for message in follow(system, job_id):
        if message.event == "job.awaiting_approval":
            break
    answer = system.http.post(f"/v1/jobs/{job_id}/approve", json={"prompt": "a blue house"})
    assert answer.status_code == 200, answer.text
    last = list(follow(system, job_id))[-1]
    assert last.event == "job.succeeded"
    job = record(system, job_id)
    assert job.prompt is not None
    assert (job.prompt.text, job.prompt.source) == ("a blue house", "edited")
