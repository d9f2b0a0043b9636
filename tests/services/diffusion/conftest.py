"""Mini SD1.5 and SDXL checkpoints, built once per run, and engines over them."""

import os

from services.diffusion.environment import ENVIRONMENT

os.environ.update(ENVIRONMENT | os.environ)

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from services.diffusion.batching import Buckets
from services.diffusion.checkpoints import CheckpointFiles, inspect
from services.diffusion.engine import Engine
from services.diffusion.libraries import StableDiffusionPipeline, StableDiffusionXLPipeline, quiet
from services.diffusion.loading import LoadedModel, load
from services.diffusion.profile import profile
from tests.services.diffusion.instruments import seeing_masks
from training.minis.diffusion import build_sd15, build_sdxl

FOLDER = Path(__file__).parent
CPU = torch.device("cpu")
MAX_ROWS = 16
CANDIDATES = Buckets.up_to(MAX_ROWS)

# diffusers' Euler family hands a torch tensor to `np.array`, whose copy keyword torch does not know yet.
_NUMPY_COPY = "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Ignore that one warning in the tests of this folder."""
    for item in items:
        if item.path.is_relative_to(FOLDER):
            item.add_marker(pytest.mark.filterwarnings(_NUMPY_COPY))


def measured(model: LoadedModel) -> LoadedModel:
    """Return the model with the buckets that are equal on this machine, as the service measures them."""
    model.buckets = profile(model, model.buckets)
    return model


@pytest.fixture(scope="session")
def mini(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the run's checkpoint; tests that change files copy it."""
    folder = tmp_path_factory.mktemp("minis") / "sd15"
    build_sd15(folder)
    return folder


@pytest.fixture(scope="session")
def files(mini: Path) -> CheckpointFiles:
    """Return the inspected checkpoint."""
    return inspect(mini)


@pytest.fixture(scope="session")
def model(files: CheckpointFiles) -> LoadedModel:
    """Return the loaded checkpoint; one engine at a time may use it."""
    return measured(load("mini", files, device=CPU, dtype=torch.float32, buckets=CANDIDATES))


@pytest.fixture(scope="session")
def stock(mini: Path) -> Any:
    """Return diffusers' own pipeline over the same folder."""
    quiet()
    pipeline = StableDiffusionPipeline.from_pretrained(mini)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="session")
def sdxl_mini(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the run's SDXL checkpoint; tests that change files copy it."""
    folder = tmp_path_factory.mktemp("minis") / "sdxl"
    build_sdxl(folder)
    return folder


@pytest.fixture(scope="session")
def sdxl_model(sdxl_mini: Path) -> LoadedModel:
    """Return the loaded SDXL checkpoint; one engine at a time may use it."""
    files = inspect(sdxl_mini)
    return measured(load("mini-xl", files, device=CPU, dtype=torch.float32, buckets=CANDIDATES))


@pytest.fixture(scope="session")
def sdxl_stock(sdxl_mini: Path) -> Any:
    """Return diffusers' own SDXL pipeline over the same folder."""
    quiet()
    pipeline = StableDiffusionXLPipeline.from_pretrained(sdxl_mini, add_watermarker=False)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="session")
def inpainting_model(model: LoadedModel) -> LoadedModel:
    """Return the checkpoint with a UNet that sees masks."""
    return seeing_masks(model)


@pytest.fixture(scope="session")
def sdxl_inpainting_model(sdxl_model: LoadedModel) -> LoadedModel:
    """Return the SDXL checkpoint with a UNet that sees masks."""
    return seeing_masks(sdxl_model)


StartEngine = Callable[..., Engine]


@pytest.fixture
def start_engine() -> Iterator[StartEngine]:
    """Yield a function that starts an engine over models; its death fails the test unless it is expected."""
    engines: list[Engine] = []
    deaths: list[BaseException] = []

    def start(
        *loaded: LoadedModel,
        models: Mapping[str, LoadedModel] | None = None,
        max_pictures: int = 64,
        deaths_to: list[BaseException] = deaths,
    ) -> Engine:
        models = {model.name: model for model in loaded} if models is None else models
        engine = Engine(models, max_pictures=max_pictures, on_death=deaths_to.append)
        engines.append(engine)
        engine.start()
        return engine

    yield start
    for engine in engines:
        engine.close()
    assert not deaths


@pytest.fixture
def engine(start_engine: StartEngine, model: LoadedModel) -> Engine:
    """Return an engine over the run's checkpoint."""
    return start_engine(model)
