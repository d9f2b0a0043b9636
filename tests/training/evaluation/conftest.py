"""Random mini checkpoints, as every figure needs them, and a running gateway with small workers."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from services.mllm.torchvision_schemas import register

register()  # before any test imports what imports torchvision

from services.diffusion.libraries import UNet2DConditionModel  # noqa: E402
from tests.gateway.conftest import artifacts as artifacts  # noqa: E402
from tests.gateway.conftest import gateway as gateway  # noqa: E402
from tests.gateway.conftest import gateway_settings as gateway_settings  # noqa: E402
from tests.gateway.conftest import house as house  # noqa: E402
from tests.gateway.conftest import http as http  # noqa: E402
from tests.gateway.conftest import settings as settings  # noqa: E402
from training.minis.diffusion import build_sd15  # noqa: E402
from training.minis.mllm import build_mllm  # noqa: E402


@pytest.fixture(scope="session")
def sd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a text-to-image checkpoint that makes two steps."""
    folder = tmp_path_factory.mktemp("sd") / "sd15"
    build_sd15(folder)
    (folder / "serving.json").write_text(json.dumps({"num_inference_steps": 2, "guidance_scale": 3.0}))
    return folder


@pytest.fixture(scope="session")
def inpainting(sd: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an inpainting checkpoint: the same, but for its UNet's nine channels."""
    folder = tmp_path_factory.mktemp("inpainting") / "sd15"
    shutil.copytree(sd, folder)
    config = json.loads((folder / "unet" / "config.json").read_text())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = UNet2DConditionModel.from_config({**config, "in_channels": 9})
    unet.save_pretrained(folder / "unet", safe_serialization=True)
    return folder


@pytest.fixture(scope="session")
def mllm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a language model that has barely begun to learn."""
    folder = tmp_path_factory.mktemp("mllm") / "mini-qwen2"
    build_mllm(folder, teach_steps=12, dtype=torch.float32)
    return folder
