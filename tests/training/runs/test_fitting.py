import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.training.runs.task import Numbers, collate, loss_of, network, plan, run, weight_of
from training.runs import Batch, Diverged, Fitted, PlanError, Stopped, fit

ROOT = Path(__file__).parents[3]
STEPS = 14


def curve(folder: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (folder / "losses.jsonl").read_text().splitlines()]
    for line in lines:
        del line["examples_per_s"]
    return lines


def weights(fitted: Fitted) -> dict[str, torch.Tensor]:
    assert fitted.ema is not None
    return {**fitted.model.state_dict(), **{f"ema.{name}": tensor for name, tensor in fitted.ema.items()}}


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


def launch(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *arguments], env=environment, capture_output=True, text=True, timeout=240, cwd=ROOT
    )


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Fitted, Path]:
    folder = tmp_path_factory.mktemp("uninterrupted")
    return run(folder, STEPS), folder


def test_killed_run_resumes_to_the_same_curve_bit_for_bit(tmp_path: Path, uninterrupted: tuple[Fitted, Path]) -> None:
    # Killed in step 7: the line of step 6 is written, the newest checkpoint is of step 4.
    killed = launch("-m", "tests.training.runs.task", str(tmp_path), str(STEPS), "8", "4", "13")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert [line["step"] for line in curve(tmp_path)] == [3, 6]
    fitted, folder = uninterrupted
    resumed = run(tmp_path, STEPS)
    assert curve(tmp_path) == curve(folder)
    assert_same(weights(resumed), weights(fitted))


def test_terminated_run_saves_exits_with_zero_and_resumes(tmp_path: Path, uninterrupted: tuple[Fitted, Path]) -> None:
    def terminate(model: Any, batch: Batch) -> dict[str, torch.Tensor]:
        os.kill(os.getpid(), signal.SIGTERM)
        return loss_of(model, batch)

    with pytest.raises(Stopped) as stopped:
        fit(network(), terminate, Numbers(), collate, plan(STEPS), tmp_path, weight_of=weight_of)
    assert stopped.value.code == 0
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000001"]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    fitted, folder = uninterrupted
    assert_same(weights(run(tmp_path, STEPS)), weights(fitted))
    assert curve(tmp_path) == curve(folder)


def test_run_that_is_complete_is_only_loaded(uninterrupted: tuple[Fitted, Path]) -> None:
    fitted, folder = uninterrupted
    before = curve(folder)
    assert_same(weights(run(folder, STEPS)), weights(fitted))
    assert curve(folder) == before


def test_two_processes_equal_one_with_the_same_global_batch(tmp_path: Path, uninterrupted: tuple[Fitted, Path]) -> None:
    command = "-m accelerate.commands.launch --config_file training/accelerate/cpu.yaml"
    launched = launch(*command.split(), "-m", "tests.training.runs.task", str(tmp_path), str(STEPS), "8", "4", "0")
    assert launched.returncode == 0, launched.stderr
    assert json.loads((tmp_path / "meta.json").read_text())["processes"] == 2
    _, folder = uninterrupted
    for one, two in zip(curve(folder), curve(tmp_path), strict=True):
        assert two == pytest.approx(one, rel=1e-5)
    name = f"checkpoints/step-{STEPS:08d}/model.safetensors"
    one_model, two_model = load_file(folder / name), load_file(tmp_path / name)
    for key, tensor in one_model.items():
        torch.testing.assert_close(two_model[key], tensor, rtol=1e-5, atol=1e-6)


def test_loss_is_the_mean_over_the_global_batch_however_it_is_cut(tmp_path: Path) -> None:
    def losses(micro_batch: int) -> list[float]:
        folder = tmp_path / str(micro_batch)
        model = torch.nn.Linear(4, 1)
        torch.nn.init.ones_(model.weight)
        torch.nn.init.zeros_(model.bias)
        numbers = plan(6, micro_batch=micro_batch, log_every=1)
        fit(model, loss_of, Numbers(), collate, numbers, folder, weight_of=weight_of, loaders=0)
        return [line["loss"] for line in curve(folder)]

    assert losses(8) == pytest.approx(losses(2), rel=1e-5)


def test_checkpoints_hold_no_pickle(uninterrupted: tuple[Fitted, Path]) -> None:
    _, folder = uninterrupted
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    assert {path.suffix for path in files} == {".safetensors", ".json", ".jsonl", ".png"}
    assert len(list((folder / "checkpoints").iterdir())) == 2
    for path in files:
        if path.suffix == ".safetensors":
            load_file(path)


def test_meta_tells_where_the_weights_come_from(uninterrupted: tuple[Fitted, Path]) -> None:
    _, folder = uninterrupted
    meta = json.loads((folder / "meta.json").read_text())
    assert meta["step"] == STEPS
    assert meta["trainable_parameters"] == 97
    assert meta["plan"]["global_batch"] == 8
    assert meta["versions"]["torch"] == torch.__version__
    assert meta["hours"] > 0
    assert (folder / "losses.png").read_bytes().startswith(b"\x89PNG")


def test_launch_that_starts_one_process_of_several_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MASTER_PORT", "29500")  # what `accelerate launch --cpu --num_processes 2` leaves
    with pytest.raises(PlanError, match=r"cpu\.yaml"):
        run(tmp_path, 3)


def test_frozen_parameters_stay_and_are_not_saved(tmp_path: Path) -> None:
    model = network()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    fitted = fit(model, loss_of, Numbers(), collate, plan(3), tmp_path, trainable=lambda name: name.startswith("3."))
    after = fitted.model.state_dict()
    assert {name for name in after if not torch.equal(before[name], after[name])} == {"3.weight", "3.bias"}
    saved = load_file(tmp_path / "checkpoints" / "step-00000003" / "model.safetensors")
    assert saved.keys() == {"3.weight", "3.bias"}


def test_averaged_parameters_lag_behind_and_can_take_their_place(tmp_path: Path) -> None:
    fitted = run(tmp_path, 6)
    assert fitted.ema is not None
    last = fitted.model.state_dict()["0.weight"].clone()
    averaged = fitted.averaged().state_dict()["0.weight"]
    assert torch.equal(averaged, fitted.ema["0.weight"])
    assert not torch.equal(averaged, last)


def test_folder_of_another_run_is_refused_with_the_difference(tmp_path: Path) -> None:
    run(tmp_path, 3)
    with pytest.raises(PlanError, match=r"learning_rate 0\.01, now learning_rate 0\.5"):
        run(tmp_path, 3, learning_rate=0.5)
    model = torch.nn.Linear(4, 1)
    with pytest.raises(PlanError, match="is of another model"):
        fit(model, loss_of, Numbers(), collate, plan(3), tmp_path)


def test_loss_that_is_no_number_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(Diverged, match="at step 3"):
        fit(
            network(),
            lambda model, batch: model(batch["x"]).mean() * float("nan"),
            Numbers(),
            collate,
            plan(9),
            tmp_path,
        )


def test_model_without_trainable_parameters_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="no parameter"):
        fit(network(), loss_of, Numbers(), collate, plan(3), tmp_path, trainable=lambda _: False)
