import pytest
from pydantic import ValidationError

from shared.contracts import (
    TERMINAL,
    GenerationPrompt,
    GenerationRequest,
    ImageResult,
    Job,
    JobStatus,
    Progress,
    QueuePosition,
    Stage,
    Timings,
)
from shared.errors import RenderFailed

IMAGE = ImageResult(
    index=0,
    id="img_" + "0" * 40,
    url="/v1/images/img_" + "0" * 40,
    media_type="image/png",
    width=64,
    height=72,
    bytes=1_234,
    sha256="0" * 64,
    seed=7,
)


def job() -> Job:
    return Job(
        id="job_1",
        status=JobStatus.SUCCEEDED,
        stage=Stage.RENDER,
        attempts=2,
        created_at=1.5,
        updated_at=2.5,
        request=GenerationRequest(instruction="雪人", seed=7, size="64x72"),
        prompt=GenerationPrompt(text="a snowman, at night", source="mllm", model="tiny", finish_reason="stop"),
        images=[IMAGE],
        progress=Progress(step=20, total_steps=20),
        queue=QueuePosition(position=0),
        eta_s=0.5,
        timings=Timings(prompt_s=0.3, total_s=1.0),
        error=RenderFailed("The picture could not be finished.").to_problem(),
        links={"self": "/v1/jobs/job_1"},
    )


def test_a_job_survives_the_wire() -> None:
    assert Job.model_validate_json(job().model_dump_json()) == job()


def test_three_states_are_final() -> None:
    assert sorted(TERMINAL) == ["canceled", "failed", "succeeded"]


@pytest.mark.parametrize(
    "change",
    [
        {"surplus": 1},
        {"status": "done"},
        {"stage": "upload"},
        {"request": {}},
        {"images": [{}]},
        {"prompt": {"text": "x"}},
    ],
)
def test_a_record_that_is_not_a_job_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Job.model_validate(job().model_dump() | change)


def test_positions_and_indices_start_at_zero() -> None:
    with pytest.raises(ValidationError):
        QueuePosition(position=-1)
    with pytest.raises(ValidationError):
        ImageResult.model_validate(IMAGE.model_dump() | {"index": -1})


@pytest.mark.parametrize("source", ["", "user", None])
def test_a_prompt_says_where_it_came_from(source: object) -> None:
    with pytest.raises(ValidationError):
        GenerationPrompt.model_validate({"text": "x", "source": source})
