"""A checkpoint's content as one hash, so that a conversion is found again wherever the folder is moved.

Hashing 16 GB takes the better part of a minute, so digests of large files are remembered by path, size and
times. In the hub's cache a file is a link to a blob that is named by its SHA-256: that name is taken.
"""

import hashlib
import json
import os
import re
from pathlib import Path

from services.mllm.checkpoints.published import Published

CONVERTER = 3  # raise it when the converter writes something else: older conversions are then made again

_BLOB = re.compile(r"[0-9a-f]{64}")


def fingerprint(published: Published, *, memo: Path | None = None) -> str:
    """Return the SHA-256 over everything of a checkpoint that a conversion reads, as 64 hex digits."""
    digests = _read(memo)
    total = hashlib.sha256(f"llmga converter {CONVERTER}\n{published.family}\n".encode())
    for path in sorted(published.files):
        is_own = path.is_relative_to(published.folder)
        name = path.relative_to(published.folder).as_posix() if is_own else f"/{path.name}"  # a tower that was given
        total.update(f"{name}\0{_digest(path, digests)}\n".encode())
    if memo is not None:
        _write(memo, digests)
    return total.hexdigest()


def _digest(path: Path, known: dict[str, str]) -> str:
    real = path.resolve()
    if path.is_symlink() and _BLOB.fullmatch(real.name):
        return real.name
    status = real.stat()
    key = f"{real}:{status.st_size}:{status.st_mtime_ns}:{status.st_ctime_ns}:{status.st_ino}"
    if key not in known:
        with real.open("rb") as file:
            known[key] = hashlib.file_digest(file, "sha256").hexdigest()
    return known[key]


def _read(memo: Path | None) -> dict[str, str]:
    if memo is None:
        return {}
    try:
        found = json.loads(memo.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}  # only a memory: made anew
    return {str(key): str(value) for key, value in found.items()} if isinstance(found, dict) else {}


def _write(memo: Path, digests: dict[str, str]) -> None:
    memo.parent.mkdir(parents=True, exist_ok=True)
    beside = memo.with_name(f"{memo.name}.{os.getpid()}")
    beside.write_text(json.dumps(digests), encoding="utf-8")
    os.replace(beside, memo)
