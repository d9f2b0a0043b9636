"""torchvision can be imported beside a torch without CUDA, in this process and in those that vLLM starts."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import services.mllm

STARTUP = Path(services.mllm.__file__).parent / "startup"
IMPORT = "import torchvision.transforms.v2"

pytestmark = pytest.mark.skipif(torch.version.cuda is not None, reason="torch has CUDA: nothing to do")


def run(script: str, *python_path: Path) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join(map(str, python_path))
    return subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def test_registering_twice_is_fine_and_torchvision_then_imports() -> None:
    done = run(f"from services.mllm.torchvision_schemas import register\nregister()\nregister()\n{IMPORT}")
    assert done.returncode == 0, done.stderr


def test_registering_after_another_s_declaration_is_fine() -> None:
    done = run(
        "import torch\n"
        "other = torch.library.Library('torchvision', 'DEF')\n"
        "other.define('nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')\n"
        f"from services.mllm.torchvision_schemas import register\nregister()\n{IMPORT}"
    )
    assert done.returncode == 0, done.stderr


def test_the_start_up_hook_registers_when_torchvision_is_imported_and_not_before() -> None:
    done = run(f"import sys\nassert 'torch' not in sys.modules\n{IMPORT}", STARTUP)
    assert done.returncode == 0, done.stderr


def test_the_start_up_hook_runs_the_one_that_it_hides(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("print('the other hook ran')")
    assert "the other hook ran" in run("", STARTUP, tmp_path).stdout
