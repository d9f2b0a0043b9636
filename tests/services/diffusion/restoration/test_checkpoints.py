"""Checkpoint folders: written, read back, and refused with a remedy."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from services.diffusion.checkpoints import UnfitCheckpoint
from services.diffusion.restoration.checkpoints import CONFIG, WEIGHTS, load, save
from tests.services.diffusion.restoration.networks import small_network


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save(small_network(), tmp_path)
    return tmp_path


def test_saved_network_loads_with_equal_tensors(folder: Path) -> None:
    wanted, loaded = small_network().state_dict(), load(folder).state_dict()
    assert wanted.keys() == loaded.keys()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in wanted.items())


def test_file_holds_every_tensor_once(folder: Path) -> None:
    names = load_file(folder / WEIGHTS).keys()
    assert not [name for name in names if name.startswith("diffusion.")]
    assert {name.split(".")[0] for name in names} == {"G", "condition", "denoise"}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_files_are_widened(tmp_path: Path, dtype: torch.dtype) -> None:
    save(small_network(), tmp_path, dtype=dtype)
    loaded = load(tmp_path).state_dict()
    for name, tensor in small_network().state_dict().items():
        assert loaded[name].dtype == torch.float32
        if not name.startswith("diffusion."):
            assert torch.equal(loaded[name], tensor.to(dtype).float())


def test_whole_published_state_dict_is_read(folder: Path) -> None:
    tensors = {name: tensor.clone() for name, tensor in small_network(seed=5).state_dict().items()}
    save_file(tensors, folder / WEIGHTS)
    loaded = load(folder).state_dict()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in tensors.items())


@pytest.mark.parametrize(
    "name", ["diffusion.betas", "diffusion.model.resmlp.0.weight", "diffusion.condition.mlp.0.bias"]
)
def test_file_that_contradicts_itself_is_refused(folder: Path, name: str) -> None:
    tensors = {key: tensor.clone() for key, tensor in small_network().state_dict().items()}
    tensors[name] += 0.01
    save_file(tensors, folder / WEIGHTS)
    with pytest.raises(UnfitCheckpoint, match=f"contradicts .*{name}"):
        load(folder)


def test_missing_unknown_and_misshaped_tensors_are_named(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    whole = dict(tensors)
    del tensors["G.patch_embed.proj.weight"]
    save_file(tensors, folder / WEIGHTS)
    with pytest.raises(UnfitCheckpoint, match=r"lacks 1 tensors \(G.patch_embed.proj.weight\)"):
        load(folder)
    save_file({**whole, "E.mlp.0.bias": torch.zeros(3)}, folder / WEIGHTS)
    with pytest.raises(UnfitCheckpoint, match=r"unknown 1 tensors \(E.mlp.0.bias\)"):
        load(folder)
    save_file({**whole, "G.patch_embed.proj.weight": torch.zeros(3)}, folder / WEIGHTS)
    with pytest.raises(UnfitCheckpoint, match=r"other shapes .*G.patch_embed.proj.weight"):
        load(folder)


def test_weights_that_are_no_numbers_are_refused(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    tensors["denoise.resmlp.0.bias"][2] = float("nan")
    save_file(tensors, folder / WEIGHTS)
    with pytest.raises(UnfitCheckpoint, match=r"not finite \(denoise.resmlp.0.bias\)"):
        load(folder)


def test_pickle_is_refused_unopened_with_the_way_to_convert_it(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / "net_g_latest.pth").write_bytes(b"not even a pickle")
    with pytest.raises(UnfitCheckpoint, match=r"net_g_latest.pth is a pickle.*training.restoration.convert"):
        load(folder)


def test_missing_and_damaged_files_are_named(folder: Path) -> None:
    weights = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(weights[:-10])
    with pytest.raises(UnfitCheckpoint, match="not a whole safetensors file"):
        load(folder)
    (folder / WEIGHTS).unlink()
    with pytest.raises(UnfitCheckpoint, match=f"{WEIGHTS} is missing"):
        load(folder)
    (folder / CONFIG).write_text("{", encoding="utf-8")
    with pytest.raises(UnfitCheckpoint, match="not JSON"):
        load(folder)
    (folder / CONFIG).write_text(json.dumps({"scale": 3, "depth": 1}), encoding="utf-8")
    with pytest.raises(UnfitCheckpoint, match="scale, depth cannot be used"):
        load(folder)
    (folder / CONFIG).unlink()
    with pytest.raises(UnfitCheckpoint, match=f"{CONFIG} is missing"):
        load(folder)
