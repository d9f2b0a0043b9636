"""The rendering benchmarks work: all arms serve the same requests, and what was measured is judged and stored."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import rendering, rendering_engine, rendering_gpu, rendering_load, rendering_report, results
from benchmarks.rendering_engine import Crowd, EngineResult
from benchmarks.rendering_load import Done, Latency, Wanted
from benchmarks.rendering_models import CallTimes, loaded
from benchmarks.rendering_report import ArmResult, ModelResult, goals
from benchmarks.rendering_shapes import KINDS
from services.diffusion.libraries import AutoencoderKL, UNet2DConditionModel
from training.minis.diffusion import build_sd15

SIZE = (128, 128)
PLAN = rendering.Plan(calls_s=0.1, saturated_s=0.2, open_s=0.5, grace_s=0.5, shares=(0.8,), crowds=(2, 3))


def wanted(steps: int = 10, guidance_scale: float = 7.5) -> Wanted:
    return Wanted("a house", SIZE, steps, steps, guidance_scale)


def measured() -> ModelResult:
    engine = EngineResult(
        served_per_s=9.6,
        offline_per_s=10.0,
        overhead_share=0.04,
        admission_p99_s=0.05,
        step_p99_s=0.06,
        crowds=[Crowd(16, 0.1, 20.0), Crowd(256, 0.11, 50.0)],
    )
    rates = {"engine": 9.0, "one at a time": 3.0, "batches of a 50 ms window": 5.0, "two threads": 3.5}
    latency = {0.8: Latency(requests=90, cut=0, p50_s=1.0, p99_s=2.0)}
    slower = {0.8: Latency(requests=90, cut=3, p50_s=2.0, p99_s=5.0)}
    arms = [ArmResult(name, rate, latency if name == "engine" else slower) for name, rate in rates.items()]
    return ModelResult("tiny (random)", 4_200_000, [SIZE, (96, 128)], {2: 1.0, 16: 3.0}, 3.2, 16, 5.0, arms, engine)


@pytest.mark.deep
async def test_every_arm_serves_the_load_and_the_engine_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rendering_load, "STEPS", (1, 1, 2, 2))
    monkeypatch.setattr(rendering_engine, "STEPS", 2)
    monkeypatch.setattr(rendering_engine, "CROWD_STEPS", 1)
    build_sd15(tmp_path)
    result = await rendering.measure(loaded("tiny (random)", tmp_path), PLAN)
    assert [arm.name for arm in result.arms] == [arm.name for arm in measured().arms]
    assert all(arm.pictures_per_s > 0 for arm in result.arms)
    assert all(list(arm.latency) == [0.8] for arm in result.arms)
    assert min(result.engine.served_per_s, result.engine.offline_per_s, result.engine.step_p99_s) > 0
    assert [crowd.requests for crowd in result.engine.crowds] == [2, 3]
    assert "| engine |" in rendering_report.text([result])


def test_the_result_is_judged_and_stored_with_its_plot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "README.md").write_text("before\n<!-- rendering:begin -->\nold\n<!-- rendering:end -->\nafter\n")
    monkeypatch.setattr(results, "HERE", tmp_path)
    rendering_report.store([measured()], threads=2)
    page = (tmp_path / "README.md").read_text()
    assert page.startswith("before\n")
    assert page.endswith("after\n")
    assert "old" not in page
    assert "results/rendering-tiny.png" in page
    assert (tmp_path / "results" / "rendering-tiny.png").stat().st_size > 1_000
    (model,) = json.loads((tmp_path / "results" / "rendering.json").read_text())["models"]
    assert model["unet_gain"] == 3.2


def test_a_goal_that_is_missed_is_said_to_be() -> None:
    result = measured()
    assert all(goal.is_met for goal in goals(result))
    slow = replace(result, engine=replace(result.engine, overhead_share=0.06, served_per_s=9.0))
    missed = [goal.name for goal in goals(slow) if not goal.is_met]
    assert missed == [
        "served over an offline loop of full buckets",
        "overhead outside the UNet per call of 16 rows",
    ]
    assert rendering_report.text([slow]).count("**no**") == 2


def test_pictures_count_by_their_cost_and_those_under_way_by_their_share() -> None:
    times = CallTimes({SIZE: {1: 0.6, 2: 1.0}})
    done = [
        Done(wanted(10), 0.0, 5.0),
        Done(wanted(20), 0.0, 10.0, is_cut=True, share=0.5),
        Done(wanted(10, guidance_scale=1.0), 0.0, 8.0),
    ]
    assert rendering.throughput(done, times, 10.0) == pytest.approx((10 + 10 + 6) / 10 / 10)
    whole = [replace(one, share=0.0) if one.is_cut else one for one in done]
    assert rendering.throughput(whole, times, 10.0) == pytest.approx((10 + 6) / 10 / 8), "up to the last picture"


def test_the_same_requests_are_drawn_for_every_arm() -> None:
    sizes = [SIZE, (96, 128)]
    one, two = rendering_load.draws(sizes, seed=1), rendering_load.draws(sizes, seed=1)
    first = [next(one) for _ in range(200)]
    assert first == [next(two) for _ in range(200)]
    assert {request.num_inference_steps for request in first} == set(rendering_load.STEPS)
    assert {request.size for request in first} == set(sizes)
    assert {request.rows for request in first} == {1, 2}


@pytest.mark.slow
def test_the_gpu_script_runs_dry(capsys: pytest.CaptureFixture[str]) -> None:
    assert rendering_gpu.main(["--dry-run", "--kinds", "sdxl", "--compile", "off"]) == 0
    table = capsys.readouterr().out
    assert table.count("| sdxl | 128 |") == 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_the_gpu_script_says_that_there_is_no_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert rendering_gpu.main([]) == 2
    assert "--dry-run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kind", "unet", "vae"), [("sd15", 859_520_964, 83_653_863), ("sdxl", 2_567_463_684, 83_653_863)]
)
def test_the_shapes_are_those_of_the_published_models(kind: str, unet: int, vae: int) -> None:
    shape = KINDS[kind]
    with torch.device("meta"):
        networks = UNet2DConditionModel(**shape.unet), AutoencoderKL(**shape.vae)
    assert [sum(parameter.numel() for parameter in network.parameters()) for network in networks] == [unet, vae]


@pytest.mark.parametrize("name", ["rendering", "rendering_gpu"])
def test_page_of_the_benchmarks_has_the_place_for_the_table(name: str) -> None:
    text = (results.HERE / "README.md").read_text()
    assert text.index(f"<!-- {name}:begin -->") < text.index(f"<!-- {name}:end -->")
