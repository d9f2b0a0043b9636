"""safetensors files as bytes: read headers, move tensors from file to file without decoding them.

A file is 8 bytes of little-endian length, a JSON header of that length, and the tensors' bytes back to back.
Working on bytes keeps the copy bit-equal, the memory bounded by one buffer however large the checkpoint is,
and torch out of it. The reader trusts nothing: lengths, offsets and shapes must agree with each other and
with the size of the file.
"""

import json
import math
import os
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.mllm.checkpoints.errors import DOWNLOAD_AGAIN, CheckpointError

MAX_HEADER_BYTES = 100_000_000  # the format's own limit
COPY_BYTES = 16 * 1024 * 1024
FLOATS = ("F32", "F16", "BF16")  # what the published checkpoints hold
DTYPE_BYTES = {"F32": 4, "F16": 2, "BF16": 2, "I64": 8}  # integers: positions that older versions saved, dropped


@dataclass(frozen=True)
class Tensor:
    """Where one tensor's bytes are."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    path: Path
    offset: int
    size_bytes: int


def read_header(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file, in the order of their bytes.

    Raises:
        CheckpointError: the file is not a sound safetensors file.
    """
    try:
        with path.open("rb") as file:
            file_bytes = os.fstat(file.fileno()).st_size
            start = file.read(8)
            header_bytes = struct.unpack("<Q", start)[0] if len(start) == 8 else -1
            if not 2 <= header_bytes <= min(MAX_HEADER_BYTES, file_bytes - 8):
                raise CheckpointError(path, "it is not a safetensors file, or it was cut off", DOWNLOAD_AGAIN)
            header = json.loads(file.read(header_bytes))
    except OSError as error:
        raise CheckpointError(
            path, f"it cannot be read ({error.strerror})", "Check the path and its permissions."
        ) from None
    except (ValueError, RecursionError):
        raise CheckpointError(path, "its header is not JSON", DOWNLOAD_AGAIN) from None
    if not isinstance(header, dict):
        raise CheckpointError(path, "its header is not a JSON object", DOWNLOAD_AGAIN)
    data_start = 8 + header_bytes
    tensors = [_tensor(path, name, entry, data_start) for name, entry in header.items() if name != "__metadata__"]
    tensors.sort(key=lambda tensor: tensor.offset)
    position = data_start
    for tensor in tensors:
        if tensor.offset != position:
            raise CheckpointError(
                path, f"the bytes of tensor {tensor.name!r} overlap others or leave a hole", DOWNLOAD_AGAIN
            )
        position += tensor.size_bytes
    if position != file_bytes:
        raise CheckpointError(path, f"it has {file_bytes} bytes where its header asks for {position}", DOWNLOAD_AGAIN)
    return {tensor.name: tensor for tensor in tensors}


def _tensor(path: Path, name: str, entry: Any, data_start: int) -> Tensor:
    try:
        dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        sound = isinstance(shape, list) and all(type(n) is int and n >= 0 for n in [*shape, begin, end])
    except (TypeError, KeyError, ValueError):
        sound = False
    if not sound:
        raise CheckpointError(path, f"the header's entry of tensor {name!r} is malformed", DOWNLOAD_AGAIN)
    if dtype not in DTYPE_BYTES:
        raise CheckpointError(
            path,
            f"tensor {name!r} has dtype {str(dtype)[:20]!r}",
            f"Use a checkpoint in one of {', '.join(FLOATS)}; quantisation is chosen when serving.",
        )
    if end - begin != math.prod(shape) * DTYPE_BYTES[dtype]:
        raise CheckpointError(path, f"tensor {name!r} has not as many bytes as its shape says", DOWNLOAD_AGAIN)
    return Tensor(name, dtype, tuple(shape), path, data_start + begin, end - begin)


def read_floats(tensor: Tensor) -> NDArray[np.float32]:
    """Return a tensor's values as float32, which holds all of F32, F16 and BF16 exactly."""
    with tensor.path.open("rb") as file:
        file.seek(tensor.offset)
        data = file.read(tensor.size_bytes)
    if tensor.dtype == "BF16":
        values = (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
    else:
        values = np.frombuffer(data, "<f4" if tensor.dtype == "F32" else "<f2").astype(np.float32)
    return values.reshape(tensor.shape)


@dataclass(frozen=True)
class Entry:
    """One tensor to write: the bytes of `source` as they are, or `values` as float32."""

    name: str
    source: Tensor
    values: NDArray[np.float32] | None = None

    @property
    def dtype(self) -> str:
        """The dtype in the written file."""
        return self.source.dtype if self.values is None else "F32"

    @property
    def size_bytes(self) -> int:
        """The number of bytes in the written file."""
        return self.source.size_bytes if self.values is None else self.values.nbytes


def write_file(path: Path, entries: Iterable[Entry], *, copied: Callable[[int], None] = lambda _: None) -> None:
    """Write a safetensors file and put it on the disk; `copied` is told the bytes written since it was last
    called."""
    entries = list(entries)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for entry in entries:
        header[entry.name] = {
            "dtype": entry.dtype,
            "shape": list(entry.source.shape),
            "data_offsets": [position, position + entry.size_bytes],
        }
        position += entry.size_bytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the format wants the tensors aligned
    with path.open("wb") as target:
        target.write(struct.pack("<Q", len(text)) + text)
        for entry in entries:
            if entry.values is not None:
                target.write(entry.values.astype("<f4").tobytes())
                copied(entry.size_bytes)
                continue
            with entry.source.path.open("rb") as source:
                source.seek(entry.source.offset)
                left = entry.source.size_bytes
                while left:
                    block = source.read(min(COPY_BYTES, left))
                    if not block:
                        raise CheckpointError(entry.source.path, "it became shorter while it was read", DOWNLOAD_AGAIN)
                    target.write(block)
                    copied(len(block))
                    left -= len(block)
        target.flush()
        os.fsync(target.fileno())


def total_bytes(tensors: Mapping[str, Tensor]) -> int:
    """Return the bytes of all tensors."""
    return sum(tensor.size_bytes for tensor in tensors.values())
