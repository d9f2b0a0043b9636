"""Operator schemas that let PyPI's torchvision be imported beside a CPU build of torch.

PyPI's torchvision is built for CUDA. Beside a torch without CUDA its compiled operators do not load, and
`import torchvision` fails because it describes two of them (`nms` and `qnms`) that then do not exist.
Declaring their schemas first is enough: its Python transforms, all that vLLM and transformers use, then work.
Where torch has CUDA the real operators load, and nothing is done here.

It must happen before the first import of torchvision: `startup/sitecustomize` sees to that in every process
that vLLM starts, and `server` in this one. Under another launcher vLLM runs `register` in each of its
processes (server, engine core, workers, model inspection): it is a `vllm.general_plugins` entry point.
"""

from typing import Any

import torch

_NAMESPACE = "torchvision"
_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)

_library: torch.library.Library | None = None  # the schemas live as long as this object


def register() -> None:
    """Declare the operators that torchvision describes when it is imported; idempotent."""
    global _library
    if torch.version.cuda is not None or _library is not None:
        return
    # torch annotates neither the class nor `define`
    library: Any = torch.library.Library(_NAMESPACE, "FRAGMENT")  # type: ignore[no-untyped-call]
    for schema in _SCHEMAS:
        if not hasattr(getattr(torch.ops, _NAMESPACE), schema.partition("(")[0]):
            library.define(schema)
    _library = library
