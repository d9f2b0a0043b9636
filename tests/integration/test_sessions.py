"""A conversation through the whole system, in whose middle parts of it die."""

import os
import signal
from typing import Any

import pytest

from shared.contracts import Job, JobStatus, Task
from shared.contracts.sessions import Session
from shared.media import decode_image
from tests.processes import until
from tests.system import System
from training.evaluation.judge import read as read_picture

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def begin(system: System) -> str:
    answer = system.http.post("/v1/sessions", json={"name": "the house"})
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


def say(system: System, session_id: str, **fields: Any) -> Job:
    """Add a turn and wait for its end."""
    body = {"num_inference_steps": 20, **fields}
    answer = system.http.post(f"/v1/sessions/{session_id}/turns", json=body, headers={"Prefer": "wait=300"})
    assert answer.status_code == 200, answer.text
    job = Job.model_validate(answer.json())
    assert job.status is JobStatus.SUCCEEDED, job.error
    return job


def read(system: System, session_id: str) -> Session:
    answer = system.http.get(f"/v1/sessions/{session_id}")
    assert answer.status_code == 200, answer.text
    return Session.model_validate(answer.json())


def kill(system: System, *services: str) -> None:
    """Kill services at once, and wait until all is there again."""
    before = {name: system.pid(name) for name in services}
    for pid in before.values():
        os.kill(pid, signal.SIGKILL)

    def are_new() -> bool:
        running = system.run.services
        return all(name in running and running[name].pid != pid for name, pid in before.items())

    until(are_new, limit_s=900, what="new processes")
    system.wait_until_ready()


def seen(system: System, job: Job) -> tuple[str, set[tuple[str, str, str]]]:
    """Return what the judge reads in a job's picture: the background's color; color, shape and place of each object."""
    answer = system.http.get(job.images[0].url)
    assert answer.status_code == 200
    reading = read_picture(decode_image(answer.content))
    return reading.background.color, {(item.color, str(item.shape), item.place) for item in reading.objects}


ROOF, WALL = ("red", "triangle", "middle center"), ("yellow", "square", "bottom center")
WHITE_WALL, STAR = ("white", "square", "bottom center"), ("yellow", "star", "top left")
SNOWMAN = {*(("white", "circle", f"{row} center") for row in ("top", "middle", "bottom"))}
MOON = ("yellow", "crescent", "top right")


@pytest.mark.parametrize("parts", [("valkey", "gateway"), pytest.param(None, marks=pytest.mark.deep, id="everything")])
def test_a_conversation_of_thirteen_turns_with_branches_survives(system: System, parts: tuple[str, ...] | None) -> None:
    edit: dict[str, Any] = {"seed": 1}
    words: dict[str, Any] = {**edit, "task": "text_to_image"}
    session_id = begin(system)
    first = say(system, session_id, instruction="draw a house on a green background", **words)
    assert seen(system, first) == ("green", {ROOF, WALL})
    painted = say(system, session_id, instruction="paint the wall white", **edit)
    assert (painted.request.task, painted.request.image) == (Task.EDIT, first.images[0].id)
    assert seen(system, painted) == ("green", {ROOF, WHITE_WALL})
    starry = say(system, session_id, instruction="add a small yellow star in the top left", **edit)
    assert seen(system, starry) == ("green", {STAR, ROOF, WHITE_WALL})
    branch = say(system, session_id, instruction="make the background cyan", parent=2, **words)  # without the star
    assert [turn.instruction for turn in branch.request.history] == [
        "draw a house on a green background", "paint the wall white",
    ]  # fmt: skip
    assert seen(system, branch) == ("cyan", {ROOF, WHITE_WALL})
    before = read(system, session_id)

    kill(system, *(parts or tuple(system.run.services)))
    assert read(system, session_id) == before

    black = say(system, session_id, instruction="make the roof black", parent=1, **edit)
    assert seen(system, black) == ("green", {("black", *ROOF[1:]), WALL})
    red = say(system, session_id, instruction="again with a red roof", **edit)
    assert red.request.task is Task.EDIT
    assert seen(system, red) == ("green", {ROOF, WALL})
    purple = say(system, session_id, instruction="draw it again with a purple roof", parent=5, **words)
    assert seen(system, purple) == ("green", {("purple", *ROOF[1:]), WALL})
    again = say(system, session_id, rerender=4)
    assert [image.sha256 for image in again.images] == [image.sha256 for image in branch.images]
    other = say(system, session_id, rerender=1, seed=99)
    assert other.images[0].sha256 != first.images[0].sha256
    assert seen(system, other) == ("green", {ROOF, WALL})
    undone = say(system, session_id, instruction="add a small yellow star in the top left", parent=1, **edit)
    assert seen(system, undone) == ("green", {STAR, ROOF, WALL})
    similar = say(system, session_id, task="similar", instruction="draw one like the first one", **edit)
    assert (similar.request.image, len(similar.request.history)) == (first.images[0].id, 1)
    assert seen(system, similar) == ("green", {ROOF, WALL})
    asked = say(system, session_id, task="similar", refers_to={"turn": 4}, history=[], **edit)
    assert asked.request.image == branch.images[0].id
    assert seen(system, asked) == ("cyan", {ROOF, WHITE_WALL})
    snowman = say(system, session_id, instruction="draw a snowman at night", parent=0, **words)
    assert seen(system, snowman) == ("navy", {*SNOWMAN, MOON})

    session = read(system, session_id)
    assert [(turn.parent, turn.rerender_of) for turn in session.turns] == [
        *[(None, None), (1, None), (2, None), (2, None), (1, None), (5, None), (5, None)],
        *[(2, 4), (None, 1), (1, None), (10, None), (11, None), (None, None)],
    ]
    assert [turn.history for turn in session.turns] == [
        *[[], [1], [1, 2], [1, 2], [1], [1, 5], [1, 5]],
        *[[1, 2], [], [1], [1], [], []],
    ]
    for turn in session.turns:
        assert turn.images
        for image in turn.images:
            assert system.http.get(image.url).status_code == 200


def test_words_about_a_picture_are_an_edit_of_it(system: System) -> None:
    session_id = begin(system)
    first = say(system, session_id, instruction="a white house", prompt_mode="verbatim", size="64x128")
    answer = system.http.post(f"/v1/sessions/{session_id}/turns", json={"instruction": "make it night"})
    job = Job.model_validate(answer.json())
    assert (job.request.task, job.request.image, job.request.size) == (Task.EDIT, first.images[0].id, "64x128")
    system.http.post(f"/v1/jobs/{job.id}/cancel")
