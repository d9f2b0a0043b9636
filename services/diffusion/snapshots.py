"""Snapshots: a picture's state between two UNet calls, as bytes that another process goes on from.

What is in one: the latents, the number of calls made, and whatever the request remembers of them. What is not: the
embeddings, which the prompt gives again bit for bit. Latents and all tensors among the memories are stored as such, the
rest is JSON in the header of the same safetensors file. A snapshot is bound to everything that decides the picture by a
fingerprint, and one that does not fit is of no use, never an error: the picture then starts anew.
"""

import hashlib
import json
import struct
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cache
from importlib.metadata import version
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from services.diffusion.loading import LoadedModel
from services.diffusion.phases import Request
from services.diffusion.pictures import Picture

EVERY_CALLS = 3
AT_RISK_CALLS = 5  # that are not kept yet: with so many a picture waits, and a killed one makes no more of them again
_FORMAT = "3"
_LATENTS, _MEMORY = "latents", "memory."


class Unusable(Exception):
    """The bytes are no snapshot of this picture."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A picture between two calls.

    latents: float32 (1, 4, h/8, w/8); memory: what the request remembers, JSON but for tensors.
    """

    calls_done: int
    latents: torch.Tensor
    memory: dict[str, Any]


class Keeper(Protocol):
    """What keeps the snapshots of one picture."""

    def keep(self, snapshot: Snapshot, kept: Callable[[], None]) -> None:
        """Begin to keep a snapshot, and call `kept`, in any thread, when that has ended; returns at once."""


def is_due(request: Request) -> bool:
    """Return whether a picture is to be kept behind the call that it has just made."""
    return request.phase is None or request.calls_done % EVERY_CALLS == 0


def take(request: Request) -> Snapshot:
    """Return a picture's state; it shares tensors with the request, which never changes one in place."""
    return Snapshot(request.calls_done, request.latents, request.memory())


def resume(request: Request, snapshot: Snapshot) -> None:
    """Bring a request that was just prepared to where a snapshot was taken.

    Raises:
        Unusable: the snapshot does not fit this request.
    """
    latents = request.latents
    if snapshot.latents.shape != latents.shape or not 0 < snapshot.calls_done <= request.calls:
        raise Unusable("its shape or its number of calls is another")
    memory = _moved(snapshot.memory, latents.device)
    request.go_on(snapshot.calls_done, snapshot.latents.to(latents.device), memory)


def fingerprint(picture: Picture, model: LoadedModel) -> str:
    """Return a digest of all that decides the bytes of a picture."""
    described = asdict(replace(picture, source=None))
    described["source"] = None if picture.source is None else picture.source.sha256
    del described["lane"], described["previews"]  # how urgent it is, and how it is watched
    decides = {
        "picture": described,
        "model": model.files.sha256,
        "dtype": str(model.dtype),
        "kernels": model.kernels,
        "device": model.device.type,
        "libraries": _libraries(),
    }
    return hashlib.sha256(json.dumps(decides, sort_keys=True, default=str).encode()).hexdigest()


@cache
def _libraries() -> dict[str, str]:
    return {name: version(name) for name in ("torch", "diffusers", "transformers")}


def pack(snapshot: Snapshot, fingerprint: str) -> bytes:
    """Return the bytes of a snapshot; waits for the device, so call it from a worker thread."""
    tensors = {_LATENTS: snapshot.latents}
    memory = _flatten(snapshot.memory, tensors)
    header = {
        "format": _FORMAT,
        "fingerprint": fingerprint,
        "calls_done": str(snapshot.calls_done),
        "memory": json.dumps(memory),
    }
    # A copy of each: a solver may remember one tensor under two names.
    stored = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    data: bytes = save(stored, metadata=header)
    return data


def unpack(data: bytes, fingerprint: str) -> Snapshot:
    """Return the snapshot in some bytes.

    Raises:
        Unusable: the bytes are damaged, of another version, or the state of another picture.
    """
    try:
        header = _metadata(data)
        if (header["format"], header["fingerprint"]) != (_FORMAT, fingerprint):
            raise Unusable("it is the state of another picture, or of another version")
        tensors = load(data)
        return Snapshot(
            calls_done=int(header["calls_done"]),
            latents=tensors[_LATENTS],
            memory=_unflatten(json.loads(header["memory"]), tensors),
        )
    except (SafetensorError, struct.error, ValueError, KeyError, TypeError) as error:
        raise Unusable("it is damaged") from error


def _metadata(data: bytes) -> dict[str, str]:
    (length,) = struct.unpack_from("<Q", data)
    found: dict[str, str] = json.loads(data[8 : 8 + length])["__metadata__"]
    return found


def _flatten(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """Return a value as JSON, with its tensors put aside under names."""
    if isinstance(value, torch.Tensor):
        name = f"{_MEMORY}{len(tensors)}"
        tensors[name] = value
        return {"tensor": name}
    if isinstance(value, list):
        return [_flatten(one, tensors) for one in value]
    if isinstance(value, dict):
        return {"values": {name: _flatten(one, tensors) for name, one in value.items()}}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"a request remembers a {type(value).__name__}, which no snapshot can hold")


def _unflatten(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(value, list):
        return [_unflatten(one, tensors) for one in value]
    if isinstance(value, dict) and "tensor" in value:
        return tensors[value["tensor"]]
    if isinstance(value, dict):
        return {name: _unflatten(one, tensors) for name, one in value["values"].items()}
    return value


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, list):
        return [_moved(one, device) for one in value]
    if isinstance(value, dict):
        return {name: _moved(one, device) for name, one in value.items()}
    return value.to(device) if isinstance(value, torch.Tensor) else value
