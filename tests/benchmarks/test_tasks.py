"""The benchmark of a mixed load works: both ways make the same pictures, and the result is stored."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import results, tasks, tasks_load
from benchmarks.tasks import Equipment, Plan, Round, Turn
from benchmarks.tasks_load import TASKS, drawn
from services.diffusion.restoration.restorer import Restorer
from shared.contracts import Task
from tests.services.diffusion.restoration.networks import small_network


def measured() -> Round:
    together = Turn(seconds=2.0, job_s=[1.0, 2.0, 2.0, 2.0, 2.0], sha256=[])
    alone = Turn(seconds=5.0, job_s=[0.5, 1.0, 1.0, 1.0, 1.5], sha256=[])
    return Round(list(TASKS), together, alone)


@pytest.mark.deep
def test_quick_run_measures_both_ways_and_stores_the_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "README.md").write_text("before\n<!-- tasks:begin -->\nold\n<!-- tasks:end -->\nafter\n")
    monkeypatch.setattr(results, "HERE", tmp_path)
    equipment, plan = Equipment.load(), Plan.quick()
    if equipment.restorer is None:
        equipment = replace(equipment, restorer=Restorer(small_network()))
    (one,) = rounds = tasks.measure(equipment, plan)
    assert one.together.sha256 == one.alone.sha256
    assert len(set(one.alone.sha256)) == plan.jobs
    assert min(*one.together.job_s, *one.alone.job_s) > 0
    assert sum(one.alone.job_s) <= one.alone.seconds
    assert max(one.together.job_s) <= one.together.seconds < sum(one.together.job_s)
    tasks.store(rounds, plan, note=equipment.note)
    page = (tmp_path / "README.md").read_text()
    assert page.startswith("before\n")
    assert page.endswith("after\n")
    assert tasks.table(rounds) in page
    assert "with a restoration network" in page
    assert "old" not in page
    stored = json.loads((tmp_path / "results" / "tasks.json").read_text())
    assert {task: times["jobs"] for task, times in stored["tasks"].items()} == dict.fromkeys(TASKS, 2)


def test_the_ratio_and_the_times_are_those_of_the_jobs() -> None:
    slow = replace(measured(), together=replace(measured().together, seconds=4.0, job_s=[3.0, 2.0, 2.0, 2.0, 2.0]))
    rounds = [measured(), slow]
    assert [one.ratio for one in rounds] == [2.5, 1.25]
    times = tasks.times_of(rounds)
    text, edit = times[Task.TEXT_TO_IMAGE], times[Task.EDIT]
    assert (text.jobs, text.together_p50_s, text.alone_p50_s) == (2, 2.0, 0.5)
    assert text.together_p95_s == pytest.approx(2.9)
    assert (edit.together_p95_s, edit.alone_p95_s) == (2.0, 1.5)
    page = tasks.table(rounds)
    assert "| median | 1.88 | 1.00 | 1.88 |" in page
    assert "| text_to_image | 2 | 2.00 | 2.90 | 0.50 | 0.50 |" in page


def test_a_round_holds_every_task_in_many_ways() -> None:
    jobs = [drawn(number) for number in range(50)]
    assert Counter(job.task for job in jobs) == dict.fromkeys(TASKS, 10)
    assert all(("image" in job.pictures) is (job.task is not Task.TEXT_TO_IMAGE) for job in jobs)
    assert sum("mask" in job.pictures for job in jobs if job.task is Task.EDIT) == 5
    for field, ways in (("num_inference_steps", tasks_load.STEPS), ("guidance_scale", tasks_load.GUIDANCE_SCALES)):
        assert {job.values[field] for job in jobs} == set(ways)
    assert {job.values["scheduler"] for job in jobs} > set(tasks_load.SCHEDULERS)
    assert {job.values["size"] for job in jobs} == set(tasks_load.SIZES)
    assert drawn(7).values == drawn(7).values


def test_page_of_the_benchmarks_has_the_place_for_the_table() -> None:
    text = (results.HERE / "README.md").read_text()
    assert text.index("<!-- tasks:begin -->") < text.index("<!-- tasks:end -->")
