"""Declare torchvision's operators before anything imports torchvision.

vLLM's processes (engine core, model inspection) import torchvision before vLLM runs its plugins there, so
that a plugin alone comes too late. Nothing is imported until `torchvision` is asked for: processes without it
start as fast as ever.
"""

import runpy
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType


class _BeforeTorchvision(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Register when torchvision is about to be imported; the usual finders then find it."""
        if fullname == "torchvision":
            sys.meta_path.remove(self)
            from services.mllm.torchvision_schemas import register

            register()
        return None


def _next_sitecustomize() -> Path | None:
    """Return the hook that this one hides, if the environment has one."""
    here = Path(__file__).parent.resolve()
    for folder in map(Path, sys.path):
        if folder.resolve() != here and (folder / "sitecustomize.py").is_file():
            return folder / "sitecustomize.py"
    return None


sys.meta_path.insert(0, _BeforeTorchvision())
if (hidden := _next_sitecustomize()) is not None:
    runpy.run_path(str(hidden))
