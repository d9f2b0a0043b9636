"""From the name in the settings to a folder that vLLM can load: found, downloaded, converted, cached."""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from services.mllm.checkpoints.conversion import FACTS, Facts, convert_published, read_facts
from services.mllm.checkpoints.errors import CheckpointError
from services.mllm.checkpoints.fingerprint import fingerprint
from services.mllm.checkpoints.published import open_published

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
# What a conversion reads; pickles and code are not even fetched.
_WANTED = ("*.safetensors", "*.json", "tokenizer.model", "merges.txt")


@dataclass(frozen=True)
class Prepared:
    """A checkpoint in the Hugging Face LLaVA layout, ready to be loaded."""

    folder: Path
    facts: Facts


def prepare(model: str, cache: Path, *, tower: str = "", progress: Callable[[str], None] = lambda _: None) -> Prepared:
    """Return the converted checkpoint for a folder or a hub id; conversions are kept below `cache` by
    content.

    tower: folder or hub id of a CLIP model whose tower takes the place of the checkpoint's copy.

    Raises:
        CheckpointError: there is no such checkpoint, or it is refused.
    """
    folder = _find(model, progress)
    if (folder / FACTS).is_file():
        if tower:
            raise CheckpointError(
                folder / FACTS,
                "it is converted, and has its tower",
                "Unset LLMGA_MLLM__TOWER, or name the published checkpoint.",
            )
        return Prepared(folder, read_facts(folder))
    progress("checking the checkpoint")
    name = model.rpartition("/")[2] if folder != Path(model) else None
    published = open_published(folder, name=name, tower_folder=_find(tower, progress) if tower else None)
    progress("comparing with earlier conversions")
    digest = fingerprint(published, memo=cache / "digests.json")
    target = cache / digest[:32]
    return Prepared(target, convert_published(published, target, digest, progress=progress))


def _find(model: str, progress: Callable[[str], None]) -> Path:
    folder = Path(model)
    if folder.is_dir():
        return folder
    if not _HUB_ID.fullmatch(model):
        raise CheckpointError(
            folder,
            "there is no such folder, and it is no hub id either",
            "Set LLMGA_MLLM__MODEL to a folder or owner/name.",
        )
    progress(f"fetching {model}")
    # The first import costs a second, and only hub ids need it.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    try:
        return Path(snapshot_download(model, allow_patterns=list(_WANTED)))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError):
        raise CheckpointError(
            folder,
            "it is neither a folder nor in the hub's local cache, and it could not be fetched",
            "Check the name and the network, or download the checkpoint and give its folder.",
        ) from None
