"""Checkpoints of a run: safetensors and JSON, written beside and renamed, so that a folder is complete or absent.

`step-00001000/` holds `model.safetensors` (trainable parameters and buffers; frozen weights come from where the
run took them), `optimizer.safetensors` (AdamW's moments, named `<parameter>.<moment>`), `ema.safetensors` where there
is an average, and `state.json`. No state of a random generator: see `training.runs.order`.

Where DeepSpeed or FSDP shares parameters or moments out among processes, each process writes its part in that library's
own files to `parts/`. Those hold pickles, and are for resuming the same run on the same number of processes only.
"""

import json
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file

from training.plan import PlanError
from training.runs.records import write_json

PREFIX = "step-"


def latest(folder: Path) -> Path | None:
    """Return the newest complete checkpoint of a run's folder."""
    found = _complete(folder)
    return found[-1] if found else None


def _complete(folder: Path) -> list[Path]:
    root = folder / "checkpoints"
    return sorted(path for path in root.glob(f"{PREFIX}*") if (path / "state.json").is_file())


def read_state(checkpoint: Path) -> dict[str, Any]:
    """Return the state of a checkpoint."""
    state = json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))
    assert isinstance(state, dict)
    return state


def save(
    folder: Path,
    step: int,
    *,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    ema: Mapping[str, torch.Tensor] | None,
    state: Mapping[str, Any],
    keep: int,
) -> None:
    """Write the checkpoint of a step and delete those before the newest `keep`."""
    target = folder / "checkpoints" / f"{PREFIX}{step:08d}"
    beside = target.with_name(f".{target.name}.{os.getpid()}")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    _write(beside / "model.safetensors", _model_tensors(model))
    _write(beside / "optimizer.safetensors", _optimizer_tensors(model, optimizer))
    if ema is not None:
        _write(beside / "ema.safetensors", ema)
    write_json(beside / "state.json", state)
    _put_in_place(beside, target, folder, keep)


def save_parts(folder: Path, step: int, *, accelerator: Accelerator, state: Mapping[str, Any], keep: int) -> None:
    """Write the checkpoint of a step with each process's part; every process calls it."""
    target = folder / "checkpoints" / f"{PREFIX}{step:08d}"
    beside = target.with_name(f".{target.name}.parts")
    if accelerator.is_main_process:
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(beside / "parts"))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        write_json(beside / "state.json", state)
        _put_in_place(beside, target, folder, keep)


def load_parts(checkpoint: Path, *, accelerator: Accelerator) -> None:
    """Put each process's part of a checkpoint in place."""
    accelerator.load_state(str(checkpoint / "parts"))


def _put_in_place(beside: Path, target: Path, folder: Path, keep: int) -> None:
    shutil.rmtree(target, ignore_errors=True)
    beside.rename(target)
    for old in _complete(folder)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)


def load(
    checkpoint: Path,
    *,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    ema: dict[str, torch.Tensor] | None,
) -> None:
    """Put the tensors of a checkpoint in place.

    Raises:
        PlanError: the model has other trainable parameters, or other shapes, than the one that was saved.
    """
    _put(load_file(checkpoint / "model.safetensors"), _model_tensors(model), checkpoint)
    moments = load_file(checkpoint / "optimizer.safetensors")
    for name, parameter in _trainable(model):
        found = {
            key: moments.pop(f"{name}.{key}") for key in ("step", "exp_avg", "exp_avg_sq") if f"{name}.{key}" in moments
        }
        optimizer.state[parameter] = {key: tensor.to(parameter.device) for key, tensor in found.items()}
    if moments:
        raise PlanError(f"{checkpoint} holds optimizer state of other parameters, such as {min(moments)}")
    if ema is not None:
        _put(load_file(checkpoint / "ema.safetensors"), ema, checkpoint)


def _trainable(model: torch.nn.Module) -> Iterable[tuple[str, torch.nn.Parameter]]:
    return ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)


def _model_tensors(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    kept = model.state_dict().keys()  # leaves out the buffers that are not persistent
    tensors: dict[str, torch.Tensor] = {name: parameter.data for name, parameter in _trainable(model)}
    return tensors | {name: buffer for name, buffer in model.named_buffers() if name in kept}


def _optimizer_tensors(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    return {
        f"{name}.{key}": value
        for name, parameter in _trainable(model)
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def _write(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    save_file({name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}, path)


def _put(source: Mapping[str, torch.Tensor], target: Mapping[str, torch.Tensor], checkpoint: Path) -> None:
    wrong = sorted(source.keys() ^ target.keys())
    wrong += [name for name in source.keys() & target.keys() if source[name].shape != target[name].shape]
    if wrong:
        raise PlanError(f"{checkpoint} is of another model: {len(wrong)} tensors differ, such as {wrong[0]}")
    for name, tensor in source.items():
        target[name].copy_(tensor)
