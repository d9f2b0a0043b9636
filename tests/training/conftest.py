"""Training runs in the test process, on one thread: minis gain nothing from a second and, on a busy machine, wait."""

from collections.abc import Iterator

import pytest
import torch

from services.mllm.torchvision_schemas import register

register()  # before any test imports what imports torchvision


@pytest.fixture(autouse=True, scope="package")
def single_threaded() -> Iterator[None]:
    """Compute on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
