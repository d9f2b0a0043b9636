"""Distilled UNets: one to four steps, at the timesteps that they were made for."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from services.diffusion.checkpoints import TAKE_TIMESTEPS, ServingDefaults, UnfitCheckpoint, inspect
from services.diffusion.execution import Execution
from services.diffusion.inputs import Inputs
from services.diffusion.library import Shelf
from services.diffusion.loading import LoadedModel
from services.diffusion.planning import make_plan
from services.diffusion.profile import served_models
from services.diffusion.requests import RenderRequest
from services.diffusion.solvers import build_scheduler
from shared.contracts import GenerationPrompt, Job, JobStatus, Scheduler, Stage
from tests.services.diffusion.conftest import StartEngine
from tests.services.diffusion.jobs import job_request
from tests.services.diffusion.pictures import render, request_for
from tests.services.diffusion.stock import STOCK, TOLERANCE, distance

HYPER = {"num_inference_steps": 1, "guidance_scale": 0.0, "scheduler": "lcm", "timesteps": [800]}  # LLMGA.md §4


@pytest.mark.parametrize(
    ("kind", "timesteps"),
    [
        (Scheduler.LCM, (800,)),
        (Scheduler.LCM, (999, 749, 499, 249)),
        (Scheduler.EULER, (999, 600)),
        (Scheduler.DPMPP_2M_SDE, (900, 500, 100)),
    ],
)
async def test_given_timesteps_equal_the_stock_pipelines(
    start_engine: StartEngine, sdxl_model: LoadedModel, sdxl_stock: Any, kind: Scheduler, timesteps: tuple[int, ...]
) -> None:
    name, options = STOCK[kind]
    sdxl_stock.scheduler = getattr(diffusers, name).from_config(sdxl_model.files.scheduler, **options)
    expected = sdxl_stock(
        prompt="a snowman",
        timesteps=list(timesteps),
        guidance_scale=0.0,
        generator=torch.Generator().manual_seed(3),
        output_type="latent",
    ).images[0]
    engine = start_engine(sdxl_model)
    request = request_for(
        sdxl_model,
        "a snowman",
        seed=3,
        steps=len(timesteps),
        guidance=0.0,
        scheduler=kind,
        timesteps=timesteps,
    )
    await render(engine, request)
    assert distance(request, expected) <= TOLERANCE
    assert engine.counters.calls == len(request.solver.timesteps)


@pytest.mark.parametrize("steps", [1, 2, 4])
async def test_a_few_steps_of_lcm_at_its_own_timesteps_equal_the_stock_pipelines(
    start_engine: StartEngine, model: LoadedModel, stock: Any, steps: int
) -> None:
    stock.scheduler = diffusers.LCMScheduler.from_config(model.files.scheduler)
    expected = stock(
        prompt="a boat",
        num_inference_steps=steps,
        guidance_scale=1.0,
        generator=torch.Generator().manual_seed(3),
        output_type="latent",
    ).images[0]
    request = request_for(model, "a boat", seed=3, steps=steps, guidance=1.0, scheduler=Scheduler.LCM)
    await render(start_engine(model), request)
    assert distance(request, expected) <= TOLERANCE


def job(**changes: Any) -> Job:
    return Job(
        id="j1",
        request=job_request(**changes),
        status=JobStatus.RUNNING,
        stage=Stage.RENDER,
        prompt=GenerationPrompt(text="a boat", source="verbatim"),
        attempts=1,
        created_at=0.0,
        updated_at=0.0,
    )


def test_a_checkpoint_says_how_it_is_meant_to_be_used(mini: Path, tmp_path: Path, model: LoadedModel) -> None:
    folder = tmp_path / "hyper"
    shutil.copytree(mini, folder)
    (folder / "serving.json").write_text(json.dumps(HYPER))
    hyper = replace(model, files=inspect(folder))
    (served,) = served_models({"mini": Shelf(hyper.files, 0)}, "mini", Execution(hyper.device, hyper.dtype))
    assert (served.num_inference_steps, served.guidance_scale, served.scheduler) == (1, 0.0, Scheduler.LCM)

    def timesteps(**changes: Any) -> list[int]:
        (request,) = make_plan(job(**changes), hyper, Inputs()).requests
        assert isinstance(request, RenderRequest)
        found: list[int] = request.solver.timesteps.tolist()
        return found

    assert timesteps(scheduler="lcm", num_inference_steps=1) == [800]
    assert timesteps(scheduler="lcm", num_inference_steps=2) == [999, 499]
    assert timesteps(scheduler="euler", num_inference_steps=1) != [800]


@pytest.mark.parametrize(
    "wrong",
    [
        {"timesteps": [800, 400]},
        {"timesteps": []},
        {"timesteps": [1000]},
        {"timesteps": [-1]},
        {"num_inference_steps": 2, "timesteps": [400, 800]},
        {"num_inference_steps": 2, "timesteps": [400, 400]},
        {"scheduler": "ddim"},
        {"scheduler": None},
        {"scheduler": "fastest"},
    ],
)
def test_defaults_that_cannot_be_meant_are_refused_by_name(mini: Path, tmp_path: Path, wrong: dict[str, Any]) -> None:
    folder = tmp_path / "hyper"
    shutil.copytree(mini, folder)
    (folder / "serving.json").write_text(json.dumps(HYPER | wrong))
    with pytest.raises(UnfitCheckpoint, match=r"serving\.json: (timesteps|scheduler)"):
        inspect(folder)


@pytest.mark.parametrize("kind", list(Scheduler))
def test_the_schedulers_that_take_timesteps_are_those_of_diffusers(model: LoadedModel, kind: Scheduler) -> None:
    scheduler = build_scheduler(kind, model.files.scheduler)
    try:
        scheduler.set_timesteps(timesteps=[800, 400])
        takes = True
    except (TypeError, ValueError):
        takes = False
    assert takes == (kind in TAKE_TIMESTEPS)


def test_without_a_file_the_defaults_are_those_of_llmga() -> None:
    assert ServingDefaults.of("sd15").timesteps_for(Scheduler.LCM, 50) is None
