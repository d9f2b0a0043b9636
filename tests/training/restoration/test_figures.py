"""The figures of the restoration network, on networks whose effect is known."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from services.diffusion.restoration.checkpoints import save
from services.diffusion.restoration.restorer import Restorer
from tests.services.diffusion.restoration.networks import silenced, small_network
from training.data.degradations import Seams
from training.restoration.figures import SIZE, cases, main, measure, sheet


def test_cases_are_reproducible_held_out_scenes_with_a_border() -> None:
    first, again = (list(cases(12, Seams(), 3)) for _ in range(2))
    for a, b in zip(first, again, strict=True):
        assert np.array_equal(a.hole, b.hole)
        is_hole = a.mask > 0
        assert is_hole.any()
        assert not is_hole.all()
        assert np.array_equal(a.hole[~is_hole], a.truth[~is_hole])
        assert not np.array_equal(a.hole, a.truth)


def test_network_that_changes_nothing_has_equal_figures_before_and_after() -> None:
    figures = measure(Restorer(silenced(small_network())), list(cases(8, Seams(), 0)))
    assert figures.scenes == 8
    assert figures.brightness_step_before == figures.brightness_step_after > 1
    assert figures.color_step_before == figures.color_step_after > 0.3
    assert figures.psnr_before == figures.psnr_after < 40


def test_network_that_darkens_makes_the_step_larger() -> None:
    network = silenced(small_network())
    torch.nn.init.constant_(network.G.get_parameter("tail.1.bias"), -0.2)
    figures = measure(Restorer(network), list(cases(8, Seams(), 0)))
    assert figures.brightness_step_after > figures.brightness_step_before + 20
    assert figures.psnr_after < figures.psnr_before - 5


def test_command_prints_figures_and_draws_a_sheet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(silenced(small_network()), tmp_path)
    out, picture = tmp_path / "figures.json", tmp_path / "sheet.png"
    assert main([str(tmp_path), "--scenes", "9", "--out", str(out), "--sheet", str(picture)]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(out.read_text(encoding="utf-8"))
    with Image.open(picture) as drawn:
        assert drawn.size == (4 * SIZE, 8 * SIZE)
    made = list(cases(1, Seams(), 0))
    assert np.array_equal(np.asarray(sheet(Restorer(silenced(small_network())), made))[:, :SIZE], made[0].truth)


def test_command_says_when_there_is_no_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 2
    assert "config.json is missing" in capsys.readouterr().err
