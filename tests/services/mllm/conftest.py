"""One taught mini checkpoint and one running service for all tests of this folder."""

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from services.mllm.torchvision_schemas import register

register()  # before any test imports what imports torchvision

from tests.services.mllm.running import RunningService, running  # noqa: E402
from tests.valkey import Server, forget_namespace  # noqa: E402
from training.minis.mllm import build_mllm  # noqa: E402

TEACH_STEPS = 60  # enough for the tags, and for answers that are not all alike


@pytest.fixture(scope="session")
def mini(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a checkpoint in the published layout, float32; tests that change files copy it."""
    folder = tmp_path_factory.mktemp("minis") / "mini-qwen2"
    build_mllm(folder, teach_steps=TEACH_STEPS, dtype=torch.float32)
    return folder


@pytest.fixture(scope="session")
def service(mini: Path, valkey: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    """Yield the run's service, ready."""
    namespace = f"t{uuid.uuid4().hex[:12]}"
    with running(tmp_path_factory.mktemp("service"), mini, valkey.url, namespace) as service:
        yield service.wait_ready()
    with valkey.client() as client:
        forget_namespace(client, namespace)
