from typing import Any

import pytest

from training.runs import Plan, PlanError


def plan(**numbers: Any) -> Plan:
    given: dict[str, Any] = {"steps": 100, "global_batch": 128, "micro_batch": 4, "learning_rate": 1.0}
    return Plan(**(given | numbers))


def test_accumulation_keeps_the_global_batch_on_any_number_of_processes() -> None:
    assert [plan().accumulation(processes) for processes in (1, 2, 8, 32)] == [32, 16, 4, 1]


def test_global_batch_that_does_not_divide_is_refused_with_the_numbers() -> None:
    with pytest.raises(PlanError, match=r"128 is not a multiple of 3 process"):
        plan().accumulation(3)


def test_cosine_warms_up_and_falls_to_zero() -> None:
    cosine = plan(schedule="cosine", warmup_steps=10)
    rates = [cosine.learning_rate_at(step) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * step for step in range(1, 11)])
    assert rates[10] == 1.0
    assert rates[55] == pytest.approx(0.5)
    assert 0 < rates[-1] < 1e-3
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_a_cosine_begins_again_at_its_restarts_and_is_the_same_before() -> None:
    once = plan(schedule="cosine", warmup_steps=10, steps=100)
    again = plan(schedule="cosine", warmup_steps=10, steps=300, restarts=(100, 200))
    rates = [again.learning_rate_at(step) for step in range(300)]
    assert rates[:100] == [once.learning_rate_at(step) for step in range(100)]
    assert rates[100] == rates[200] == again.learning_rate
    assert rates[99] < 0.01 * again.learning_rate
    assert rates[100:200] == sorted(rates[100:200], reverse=True)
    assert rates[100:200] == rates[200:]


def test_milestones_halve_the_rate() -> None:
    steps = plan(schedule="milestones", milestones=(20, 30))
    assert [steps.learning_rate_at(step) for step in (0, 19, 20, 29, 30, 99)] == [1, 1, 0.5, 0.5, 0.25, 0.25]


def test_constant_stays_after_its_warmup() -> None:
    assert [plan(warmup_steps=2).learning_rate_at(step) for step in (0, 1, 50)] == [0.5, 1.0, 1.0]


@pytest.mark.parametrize(
    "numbers",
    [
        {"steps": 0},
        {"micro_batch": 0},
        {"learning_rate": 0.0},
        {"ema_decay": 1.0},
        {"milestones": (3,)},
        {"restarts": (3,)},
        {"restarts": (5, 3), "schedule": "cosine"},
        {"restarts": (100,), "schedule": "cosine"},
    ],
)
def test_numbers_that_make_no_sense_are_refused(numbers: dict[str, Any]) -> None:
    with pytest.raises(PlanError, match=next(iter(numbers))):
        plan(**numbers)


def test_run_of_constant_rate_may_go_on_for_longer() -> None:
    assert plan(steps=100).curve() == plan(steps=200, micro_batch=8).curve()
    assert plan(steps=100, schedule="cosine").curve() != plan(steps=200, schedule="cosine").curve()
