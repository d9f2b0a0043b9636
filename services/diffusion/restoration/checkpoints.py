"""Restoration checkpoints: a folder of `config.json` and `model.safetensors`, under the published tensor names.

Pickles are never opened. A published file holds the encoder and the denoiser twice and the schedule as tensors
(LLMGA.md §6.2): we write each once; what a file repeats must agree with what it repeats.
"""

import json
from pathlib import Path

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from services.diffusion.checkpoints import UnfitCheckpoint
from services.diffusion.restoration.config import RestorationConfig
from services.diffusion.restoration.ipr import schedule
from services.diffusion.restoration.network import DiffRIRS2

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
# Names under which the published state dict repeats other tensors.
REPEATED = {"diffusion.model.": "denoise.", "diffusion.condition.": "condition."}
SCHEDULE = "diffusion."
_PICKLES = ("*.pth", "*.pt", "*.bin", "*.ckpt", "*.pkl")
_NAMED = 5  # names in a message


def load(folder: Path) -> DiffRIRS2:
    """Build the network that the folder describes and load its weights, float32 on the CPU.

    Raises:
        UnfitCheckpoint: a file is missing, damaged or not of the network that its configuration describes.
    """
    config = _config(folder)
    path = folder / WEIGHTS
    if not path.is_file():
        for pattern in _PICKLES:
            for pickle in folder.glob(pattern):
                raise UnfitCheckpoint(
                    f"{pickle} is a pickle, which can run code, and is not opened; "
                    "convert it with `python -m training.restoration.convert`"
                )
        raise UnfitCheckpoint(f"{path} is missing; copy the complete restoration checkpoint")
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError):
        raise UnfitCheckpoint(f"{path} is not a whole safetensors file; copy it again") from None
    with torch.device("meta"):
        network = DiffRIRS2(config)
    network.to_empty(device="cpu")
    network.load_state_dict(complete(network, tensors, path), strict=True)
    return network


def save(network: DiffRIRS2, folder: Path, *, dtype: torch.dtype = torch.float32) -> None:
    """Write a folder that `load` reads; weights in `dtype`, each once, and no schedule."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        name: tensor.detach().to("cpu", dtype).contiguous()
        for name, tensor in network.state_dict().items()
        if not name.startswith(SCHEDULE)
    }
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / CONFIG).write_text(network.config.model_dump_json(indent=2) + "\n", encoding="utf-8")


def complete(network: DiffRIRS2, tensors: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Return the network's whole state dict, float32, from a file's tensors; `path` is for the messages.

    Raises:
        UnfitCheckpoint: names, shapes or numbers are not those of this network.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    missing = [name for name in shapes if not name.startswith(SCHEDULE) and name not in tensors]
    unknown = [name for name in tensors if name not in shapes]
    for problem, names in (("lacks", missing), ("has unknown", unknown)):
        if names:
            raise UnfitCheckpoint(
                f"{path} {problem} {len(names)} tensors ({_listed(names)}); it is not that configuration's S2 network"
            )
    wrong = [name for name, tensor in tensors.items() if tuple(tensor.shape) != shapes[name]]
    if wrong:
        raise UnfitCheckpoint(
            f"{path} has other shapes than its {CONFIG} describes ({_listed(wrong)}); correct the configuration"
        )
    broken = [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise UnfitCheckpoint(f"{path} has values that are not finite ({_listed(broken)}); use another copy")
    whole = {name: tensors[name].float() for name in shapes if not name.startswith(SCHEDULE)}
    config = network.config
    computed = schedule(config.timesteps, config.linear_start, config.linear_end)
    for name in shapes:
        if not name.startswith(SCHEDULE):
            continue
        original = next((name.replace(copy, first) for copy, first in REPEATED.items() if name.startswith(copy)), None)
        whole[name] = computed[name.removeprefix(SCHEDULE)] if original is None else whole[original]
        if name in tensors and not torch.allclose(tensors[name].float(), whole[name], rtol=1e-4, atol=1e-6):
            raise UnfitCheckpoint(
                f"{path} contradicts {'its ' + CONFIG if original is None else 'itself'} in {name}; use another copy"
            )
    return whole


def _config(folder: Path) -> RestorationConfig:
    path = folder / CONFIG
    if not path.is_file():
        raise UnfitCheckpoint(f"{path} is missing; it names the network's scale and sizes")
    try:
        return RestorationConfig.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except ValidationError as error:
        faults = ", ".join(".".join(map(str, fault["loc"])) or fault["msg"] for fault in error.errors())
        raise UnfitCheckpoint(f"{path}: {faults} cannot be used; correct it") from None
    except ValueError:
        raise UnfitCheckpoint(f"{path} is not JSON; copy the file again") from None


def _listed(names: list[str]) -> str:
    return ", ".join(names[:_NAMED]) + (", …" if len(names) > _NAMED else "")
