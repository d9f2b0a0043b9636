"""Checkpoints whose decoders leave seams, and the figure that is measured with them."""

import base64
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from services.diffusion.libraries import AutoencoderKL
from services.diffusion.restoration.checkpoints import save
from services.diffusion.restoration.restorer import Restorer
from shared.contracts import GenerationRequest, Restore, Task
from shared.media import decode_image
from tests.services.diffusion.restoration.networks import silenced, small_network
from training.evaluation.__main__ import main
from training.evaluation.figures import Sample, restoration, restored
from training.evaluation.relit import WEIGHTS, relight, relit_copies
from training.evaluation.relit import main as relit_main
from training.evaluation.serving import Made
from training.world.drawing import Pixels


@pytest.fixture(scope="module")
def relit(inpainting: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with two checkpoints that leave seams."""
    folder = tmp_path_factory.mktemp("relit")
    relit_copies(inpainting, folder, 2)
    return folder


def decoded(folder: Path) -> torch.Tensor:
    """Return a picture in [0, 1], not clipped."""
    vae = AutoencoderKL.from_pretrained(folder / "vae").eval()
    latents = torch.randn((1, vae.config.latent_channels, 4, 4), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        picture: torch.Tensor = vae.decode(latents).sample
    return picture / 2 + 0.5


def test_decoder_gives_another_contrast_and_brightness(inpainting: Path, tmp_path: Path) -> None:
    shutil.copytree(inpainting / "vae", tmp_path / "vae")
    relight(tmp_path / WEIGHTS, 0.9, (0.1, 0.0, -0.1))
    wanted = 0.9 * decoded(inpainting) + torch.tensor([0.1, 0.0, -0.1])[None, :, None, None]
    assert torch.allclose(decoded(tmp_path), wanted, atol=2e-3)


def test_copies_differ_in_their_decoders_alone(inpainting: Path, relit: Path) -> None:
    first, second = sorted(relit.iterdir())
    assert (first.name, second.name) == ("relit-0", "relit-1")
    assert not torch.equal(decoded(first), decoded(second))
    for file in (path for path in inpainting.rglob("*") if path.is_file()):
        place = file.relative_to(inpainting)
        for copy in (first, second):
            assert ((copy / place).read_bytes() == file.read_bytes()) == (place != WEIGHTS)


def test_command_says_what_a_service_is_to_serve(
    inpainting: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [str(inpainting), str(tmp_path / "out"), "--count", "1"]
    assert relit_main(command) == 0
    assert f'"relit-0": "{tmp_path}/out/relit-0"' in capsys.readouterr().out
    assert relit_main(command) == 2, "a copy that is there stays"
    assert relit_main([str(tmp_path), str(tmp_path / "other")]) == 2
    told = capsys.readouterr().err
    assert "relit-0 is there already" in told
    assert "unet/config.json is missing" in told


@dataclass
class Serving:
    """A gateway whose holes are all of one color, and whose restoration puts the picture's own back."""

    bodies: list[GenerationRequest] = field(default_factory=list)

    def make(self, bodies: list[dict[str, Any]]) -> list[Made]:
        return [self._made(body) for body in bodies]

    def _made(self, body: dict[str, Any]) -> Made:
        request = GenerationRequest.model_validate(body)
        self.bodies.append(request)
        picture, mask = (decoded_uri(body[name]) for name in ("image", "mask"))
        hole = mask[..., 0] > 0
        painted = np.where(hole[..., None], np.uint8(90), picture)
        return Made(body["instruction"], picture, {"unrestored": painted})


def decoded_uri(uri: str) -> Pixels:
    return decode_image(base64.b64decode(uri.partition(",")[2]))


def test_figure_is_measured_on_what_the_gateway_keeps(relit: Path) -> None:
    serving = Serving()
    figure = restored(Sample(5), serving, relit)  # type: ignore[arg-type]
    assert [request.model for request in serving.bodies] == ["relit-0"] * 2 + ["relit-1"] * 3
    for request in serving.bodies:
        assert (request.task, request.restore, request.debug) == (Task.INPAINT, Restore.ON, True)
        assert request.strength is not None
        assert request.num_inference_steps is not None
        assert int(request.strength * request.num_inference_steps) == 1
    assert figure.rows["before"]["brightness_step"] > 5
    assert figure.rows["after"] == {"brightness_step": 0, "color_step": 0, "psnr_db": 60}


def test_figure_in_this_process_is_of_the_last_step_and_the_decoder(relit: Path, tmp_path: Path) -> None:
    figure = restoration(Sample(3), Restorer(silenced(small_network())), relit)
    assert figure.rows["before"] == figure.rows["after"], "this network changes nothing"
    assert figure.rows["before"]["brightness_step"] > 1
    with pytest.raises(ValueError, match="no checkpoints"):
        restoration(Sample(3), Restorer(silenced(small_network())), tmp_path)


def test_command_measures_with_them(relit: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(silenced(small_network()), tmp_path)
    command = ["restoration", "--restoration", str(tmp_path), "--relit", str(relit), "--count", "2"]
    assert main(command) == 0
    assert "after / before" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["restoration", "--url", "http://127.0.0.1:1"])
    assert "needs --relit" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["restoration", "--restoration", str(tmp_path), "--relit", str(tmp_path)])
    assert "no checkpoints" in capsys.readouterr().err
