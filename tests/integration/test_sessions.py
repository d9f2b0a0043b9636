"""A conversation through the whole system, in whose middle parts of it die."""

import os
import signal
from typing import Any

import pytest

from shared.contracts import Job, JobStatus, Task
from shared.contracts.sessions import Session
from tests.processes import until
from tests.system import System

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def begin(system: System) -> str:
    answer = system.http.post("/v1/sessions", json={"name": "the house"})
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


def say(system: System, session_id: str, **fields: Any) -> Job:
    """Add a turn and wait for its end."""
    body = {"num_inference_steps": 2, **fields}
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


@pytest.mark.parametrize("parts", [("valkey", "gateway"), pytest.param(None, marks=pytest.mark.deep, id="everything")])
def test_a_conversation_of_ten_turns_with_branches_survives(system: System, parts: tuple[str, ...] | None) -> None:
    # The small model has learned no long conversations, so that what goes deeper than one turn is said verbatim.
    words: dict[str, Any] = {"task": "text_to_image", "seed": 1}
    exact: dict[str, Any] = {**words, "prompt_mode": "verbatim"}
    session_id = begin(system)
    first = say(system, session_id, instruction="draw a white house", **words)
    roof = say(system, session_id, instruction="draw it with a red roof", **words)
    assert [turn.instruction for turn in roof.request.history] == ["draw a white house"]
    say(system, session_id, instruction="a white house with a red roof at night", **exact)
    branch = say(system, session_id, instruction="a white house with a red roof in winter", parent=2, **exact)
    before = read(system, session_id)

    kill(system, *(parts or tuple(system.run.services)))
    assert read(system, session_id) == before

    again = say(system, session_id, rerender=2)
    assert [image.sha256 for image in again.images] == [image.sha256 for image in roof.images]
    other = say(system, session_id, rerender=2, seed=99)
    assert other.images[0].sha256 != roof.images[0].sha256
    say(system, session_id, instruction="a house in the snow", parent=4, **exact)  # the two before are undone
    similar = say(system, session_id, task="similar", instruction="draw one like the first one, in blue", seed=1)
    assert (similar.request.image, len(similar.request.history)) == (first.images[0].id, 1)
    asked = say(system, session_id, task="similar", refers_to={"turn": 4}, history=[], seed=1)
    assert asked.request.image == branch.images[0].id
    say(system, session_id, instruction="draw a boat on a lake", parent=0, **words)

    session = read(system, session_id)
    assert [(turn.parent, turn.rerender_of) for turn in session.turns] == [
        *[(None, None), (1, None), (2, None), (2, None), (1, 2), (1, 2)],
        *[(4, None), (7, None), (8, None), (None, None)],
    ]
    assert [turn.history for turn in session.turns] == [[], [1], [], [], [1], [1], [], [1], [], []]
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
