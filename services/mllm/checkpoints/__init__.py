"""Checkpoints: the published LLMGA layout is checked and converted once to the Hugging Face LLaVA layout.

No torch in here: tensors are moved as bytes.
"""

from services.mllm.checkpoints.cache import Prepared, prepare
from services.mllm.checkpoints.conversion import Facts, convert, read_facts
from services.mllm.checkpoints.errors import CheckpointError

__all__ = ["CheckpointError", "Facts", "Prepared", "convert", "prepare", "read_facts"]
