"""A checkpoint's folder and its JSON files, read with suspicion.

No code of a checkpoint ever runs: pickles, Python files and `auto_map` are refused, and so is what leads out of
the folder or is no plain file.
"""

import json
import stat
from pathlib import Path
from typing import Any

from services.mllm.checkpoints.errors import DOWNLOAD_AGAIN, USE_SAFETENSORS, CheckpointError

MAX_JSON_BYTES = 64 * 1024 * 1024  # the largest tokenizer.json (Gemma's) has 17 MB
PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".h5", ".msgpack", ".joblib", ".npy", ".npz"}
# Left behind by the trainer beside safetensors weights; never read.
TRAINER_FILES = {"training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth"}


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file, which must not ask for code of the checkpoint's own.

    Raises:
        CheckpointError: the file is missing, too large, not a JSON object, or has an `auto_map`.
    """
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise CheckpointError(path, f"it is larger than {MAX_JSON_BYTES} bytes", DOWNLOAD_AGAIN)
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise CheckpointError(
            path, "it is missing or cannot be read", "Download the whole checkpoint, with all its files."
        ) from None
    except (ValueError, RecursionError):
        raise CheckpointError(path, "it is not JSON", DOWNLOAD_AGAIN) from None
    if not isinstance(value, dict):
        raise CheckpointError(path, "it is not a JSON object", DOWNLOAD_AGAIN)
    if _asks_for_code(value):
        raise CheckpointError(
            path,
            "it has an `auto_map`, which asks for code from the checkpoint to be run",
            "Remove the entry if you trust the weights: the known architectures need no such code.",
        )
    return value


def _asks_for_code(value: Any) -> bool:
    left = [value]
    while left:
        found = left.pop()
        if isinstance(found, dict):
            # A vocabulary may have a token of this spelling; its value is a number then.
            if not isinstance(found.get("auto_map"), int | None):
                return True
            left += found.values()
        elif isinstance(found, list):
            left += found
    return False


def refuse_hostile(folder: Path) -> list[str]:
    """Refuse what could run code, hide weights or lead elsewhere; return the names of what is left alone."""
    ignored = []
    has_safetensors = any(folder.glob("*.safetensors"))
    for path in sorted(folder.rglob("*")):
        _refuse_elsewhere(folder, path)
        if path.suffix.lower() in {".py", ".pyc", ".so"}:
            raise CheckpointError(
                path,
                "the checkpoint brings Python code",
                "Delete the file if you trust the weights: no code of a checkpoint is ever run here.",
            )
        if path.suffix.lower() in PICKLES:
            is_left_over = path.name in TRAINER_FILES or path.name.startswith("rng_state_")
            if not has_safetensors or not is_left_over:
                raise CheckpointError(path, "it can be a pickle", USE_SAFETENSORS)
            ignored.append(str(path.relative_to(folder)))
    return ignored


def _refuse_elsewhere(folder: Path, path: Path) -> None:
    """Refuse links out of the folder and what is neither file nor folder: a pipe would be read for ever."""
    try:
        mode = path.stat().st_mode
    except OSError:
        raise CheckpointError(path, "it is a link to nothing", "Copy the file itself to its place.") from None
    if path.is_symlink():
        real, root = path.resolve(), folder.resolve()
        # In the hub's cache a snapshot is links to the blobs beside it: models--a--b/snapshots/<commit>.
        blobs = root.parent.parent / "blobs" if root.parent.name == "snapshots" else root
        if not real.is_relative_to(root) and not real.is_relative_to(blobs):
            raise CheckpointError(path, "it is a link out of the checkpoint", "Copy the file itself to its place.")
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise CheckpointError(path, "it is neither a file nor a folder", "Delete it.")
