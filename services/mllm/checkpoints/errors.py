"""Why a checkpoint is refused: which file, what is wrong with it, and the remedy."""

from pathlib import Path


class CheckpointError(Exception):
    """The checkpoint cannot be served as it is."""

    def __init__(self, path: Path, problem: str, remedy: str) -> None:
        super().__init__(f"{path}: {problem}. {remedy}")
        self.path = path
        self.problem = problem
        self.remedy = remedy


DOWNLOAD_AGAIN = "Download the file again and compare its SHA-256 with the hub's."
USE_SAFETENSORS = "Use a checkpoint in safetensors format: pickles can run code when they are read, so none is."
