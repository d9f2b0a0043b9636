import pytest
from pydantic import ValidationError

from shared.contracts import Announcement, Phase, Scheduler, ServedModel, Stage
from shared.contracts.generation import PromptEncoding
from shared.contracts.problem import FieldProblem, Problem

ANNOUNCEMENT = Announcement(
    worker="host-1-ab",
    stage=Stage.RENDER,
    phase=Phase.READY,
    models=[
        ServedModel(
            name="sd15",
            default=True,
            size="512x512",
            schedulers=[Scheduler.DDIM],
            prompt_encodings=[PromptEncoding.LLMGA],
        )
    ],
    free=3,
)


def test_an_announcement_survives_the_wire() -> None:
    assert Announcement.model_validate_json(ANNOUNCEMENT.model_dump_json()) == ANNOUNCEMENT


@pytest.mark.parametrize("change", [{"free": -1}, {"running": -1}, {"phase": "asleep"}, {"stage": None}, {"gpu": 1}])
def test_what_is_no_announcement_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Announcement.model_validate(ANNOUNCEMENT.model_dump() | change)


@pytest.mark.parametrize("status", [0, 200, 399, 600])
def test_a_problem_has_the_status_of_an_error(status: int) -> None:
    with pytest.raises(ValidationError):
        Problem(type="urn:x", title="x", status=status, code="x", detail="x", next_step="x")


def test_a_field_problem_has_three_parts() -> None:
    with pytest.raises(ValidationError):
        FieldProblem.model_validate({"field": "n", "code": "range"})
