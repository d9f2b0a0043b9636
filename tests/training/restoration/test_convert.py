"""Published pickles become a folder; anything that is not tensors is refused unread."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from services.diffusion.checkpoints import UnfitCheckpoint
from services.diffusion.restoration.checkpoints import load
from services.diffusion.restoration.config import RestorationConfig
from services.diffusion.restoration.network import DiffRIRS2
from training.restoration.convert import convert, main


class Attack:
    """A pickle that would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_published_file_becomes_a_folder_that_is_served(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in DiffRIRS2(RestorationConfig(scale=2)).state_dict().items()}
    weights = {name: torch.full(shape, len(name) / 10) for name, shape in shapes.items() if name[:9] != "diffusion"}
    averaged = {f"module.{name}": tensor for name, tensor in weights.items()}
    averaged["module.diffusion.betas"] = torch.tensor([0.1, 0.294289, 0.590955, 0.99])
    last = {name: torch.zeros(1) for name in averaged}
    torch.save({"params": last, "params_ema": averaged}, tmp_path / "net_g_latest.pth")
    assert main([str(tmp_path / "net_g_latest.pth"), str(tmp_path / "out")]) == 0
    assert "scale 2" in capsys.readouterr().out
    loaded = load(tmp_path / "out")
    assert loaded.config == RestorationConfig(scale=2)
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in weights.items())


def test_code_in_a_pickle_is_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"params_ema": Attack(tmp_path / "made")}, tmp_path / "bad.pth")
    assert main([str(tmp_path / "bad.pth"), str(tmp_path / "out")]) == 2
    assert "holds more than tensors" in capsys.readouterr().err
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"params_ema": [1, 2]}, "holds no state dict"),
        ({"params_ema": {"a": torch.zeros(1)}}, "is not DiffRIR"),
        ({"params_ema": {"G.patch_embed.proj.weight": torch.zeros(64, 96, 3, 3)}}, "lacks 550 tensors"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: object, message: str) -> None:
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(UnfitCheckpoint, match=message):
        convert(tmp_path / "other.pth", tmp_path / "out")
