"""Checkpoints on disk: which folders are served, judged from names and headers before a library opens them.

A folder is in diffusers layout. Its parts are loaded by explicit classes, whatever `model_index.json` says
(published folders name the wrong pipeline, LLMGA.md §7.3). Weights are safetensors: a pickle is never opened,
and a part that has nothing else is refused. Folders with Python files or `auto_map` are refused as a whole:
`trust_remote_code=False` is no boundary. Nothing here imports torch.
"""

import hashlib
import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from shared.contracts import Scheduler, Task
from shared.contracts.generation import MAX_STEPS

Kind = Literal["sd15", "sdxl"]

WEIGHTS = {
    "unet": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
    "text_encoder_2": "model.safetensors",
}
CONFIGS = {
    "unet": "config.json",
    "vae": "config.json",
    "text_encoder": "config.json",
    "text_encoder_2": "config.json",
    "scheduler": "scheduler_config.json",
}
# Of SDXL alone: its second text encoder.
SECOND_ENCODER, SECOND_TOKENIZER = "text_encoder_2", "tokenizer_2"
INVERTIBLE_PREDICTIONS = ("epsilon", "v_prediction")
UNET_CHANNELS = (4, 9)  # latents; latents, mask and masked latents of an inpainting UNet (LLMGA.md §5.3)
TIME_IDS = 6  # sizes and crop that its UNet is told
TOKENIZER = ("vocab.json", "merges.txt")
TOKENIZER_OPTIONAL = ("tokenizer_config.json", "special_tokens_map.json")
SERVING = "serving.json"
# Schedulers of diffusers that can be given their timesteps.
TAKE_TIMESTEPS = frozenset({Scheduler.EULER, Scheduler.DPMPP_2M, Scheduler.DPMPP_2M_SDE, Scheduler.LCM, Scheduler.HEUN})
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.msgpack")
_MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors format
_HASH_CHUNK_BYTES = 1 << 20


class UnfitCheckpoint(Exception):
    """The folder cannot be served; the message names the file and what to do."""


class ServingDefaults(BaseModel):
    """What a worker announces for a checkpoint when its folder says so, in `serving.json`.

    scheduler: the solver for requests that name none; that of the checkpoint's own configuration if left out.
    timesteps: of a UNet that was distilled for these alone (Hyper-SDXL's single step: 800), falling, one per step.
        Requests for that many steps with this scheduler are made with them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    num_inference_steps: int = Field(default=50, ge=1, le=MAX_STEPS)
    guidance_scale: Annotated[float, Field(ge=0, le=30, allow_inf_nan=False)] = 7.5
    scheduler: Scheduler | None = None
    timesteps: tuple[Annotated[int, Field(ge=0, le=999)], ...] | None = None

    @field_validator("timesteps")
    @classmethod
    def _fit_the_steps(cls, timesteps: tuple[int, ...] | None, info: ValidationInfo) -> tuple[int, ...] | None:
        if timesteps is None:
            return None
        if list(timesteps) != sorted(set(timesteps), reverse=True):
            raise ValueError("must fall")
        if len(timesteps) != info.data.get("num_inference_steps"):
            raise ValueError("must be as many as num_inference_steps")
        scheduler = info.data.get("scheduler")
        if scheduler not in TAKE_TIMESTEPS:
            raise ValueError("needs a scheduler that can be given them")
        return timesteps

    def timesteps_for(self, scheduler: Scheduler, num_inference_steps: int) -> tuple[int, ...] | None:
        """Return the timesteps that a request is made with, None where its solver chooses them."""
        is_distilled = scheduler is self.scheduler and num_inference_steps == self.num_inference_steps
        return self.timesteps if is_distilled else None

    @classmethod
    def of(cls, kind: Kind) -> "ServingDefaults":
        """Return what LLMGA's command lines use (LLMGA.md §4)."""
        return cls(guidance_scale=5.0) if kind == "sdxl" else cls()


class Numbers(NamedTuple):
    """How many numbers the weights of a part are, and how many of them are in matrices: linear layers, embeddings."""

    total: int
    in_matrices: int


@dataclass(frozen=True, slots=True)
class CheckpointFiles:
    """A folder that passed: its configurations, and the hash of all that makes its pictures."""

    folder: Path
    kind: Kind
    unet: dict[str, Any]
    vae: dict[str, Any]
    scheduler: dict[str, Any]
    serving: ServingDefaults
    sha256: str
    numbers: Mapping[str, Numbers]  # of each part
    zero_empty_negative: bool = False  # SDXL: no negative prompt means an embedding of zeros

    @property
    def sample_size(self) -> int:
        """The model's own side in latents."""
        return int(self.unet.get("sample_size", 64))

    @property
    def tasks(self) -> tuple[Task, ...]:
        """What it does: a UNet that was trained to see masks does nothing else."""
        painting = (Task.INPAINT, Task.OUTPAINT)
        if self.unet["in_channels"] != UNET_CHANNELS[0]:
            return painting
        tasks = (Task.TEXT_TO_IMAGE, Task.SIMILAR, *painting)
        return (*tasks, Task.EDIT) if self._is_invertible else tasks

    @property
    def _is_invertible(self) -> bool:
        """Whether an edit can follow it: a distilled UNet knows some timesteps only, or has guidance built in."""
        is_distilled = self.serving.timesteps is not None or self.unet.get("time_cond_proj_dim") is not None
        return not is_distilled and self.scheduler.get("prediction_type", "epsilon") in INVERTIBLE_PREDICTIONS

    @property
    def upcasts_vae(self) -> bool:
        """Whether the autoencoder overflows in float16; SDXL's does, and says so."""
        return bool(self.vae.get("force_upcast"))


def inspect(folder: Path) -> CheckpointFiles:
    """Return what is needed to load the folder; reads every byte of it once, for the hash.

    Raises:
        UnfitCheckpoint: a file is missing, damaged, unsafe or of a model that is not served.
    """
    if not folder.is_dir():
        raise UnfitCheckpoint(f"{folder} is not a folder; give the path of a checkpoint in diffusers layout")
    for path in folder.rglob("*.py"):
        raise UnfitCheckpoint(
            f"{path} is Python code, which is never run here; remove the file if the model does without it"
        )
    kind = _kind(folder, _config(folder / "unet" / CONFIGS["unet"]))
    is_sdxl = kind == "sdxl"
    configs = {
        part: _config(folder / part / name) for part, name in CONFIGS.items() if is_sdxl or part != SECOND_ENCODER
    }
    numbers = {part: _check_weights(folder / part) for part in WEIGHTS if part in configs}
    for tokenizer in ("tokenizer", SECOND_TOKENIZER) if is_sdxl else ("tokenizer",):
        for name in TOKENIZER:
            _require(folder / tokenizer / name)
    _check_widths(folder, configs)
    index = _config(folder / "model_index.json") if (folder / "model_index.json").is_file() else {}
    return CheckpointFiles(
        folder=folder,
        kind=kind,
        unet=configs["unet"],
        vae=configs["vae"],
        scheduler=configs["scheduler"],
        serving=_serving(folder / SERVING, kind),
        sha256=_content_hash(folder),
        numbers=numbers,
        zero_empty_negative=is_sdxl and bool(index.get("force_zeros_for_empty_prompt", True)),
    )


def _require(path: Path) -> None:
    if not path.is_file():
        raise UnfitCheckpoint(f"{path} is missing; copy the complete checkpoint in diffusers layout")


def _config(path: Path) -> dict[str, Any]:
    _require(path)
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        config = None
    if not isinstance(config, dict):
        raise UnfitCheckpoint(f"{path} is not a JSON object; copy the file again")
    if "auto_map" in config:
        raise UnfitCheckpoint(f"{path} has `auto_map`, which names code to run; use a checkpoint without it")
    return config


def _check_weights(folder: Path) -> Numbers:
    path = folder / WEIGHTS[folder.name]
    if not path.is_file():
        for pattern in _PICKLES:
            for pickle in folder.glob(pattern):
                raise UnfitCheckpoint(
                    f"{pickle} is not safetensors and is not opened (a pickle can run code); convert it to {path.name}"
                )
        raise UnfitCheckpoint(f"{path} is missing; copy the complete checkpoint, as one file per part")
    return check_safetensors(path)


def check_safetensors(path: Path) -> Numbers:
    """Compare the file's length with its header (safetensors: u64 length, JSON, data); return what the header says.

    Raises:
        UnfitCheckpoint: the file is not whole.
    """
    size = path.stat().st_size
    damaged = UnfitCheckpoint(f"{path} is not a whole safetensors file ({size} bytes); copy it again")
    with path.open("rb") as file:
        start = file.read(8)
        if len(start) < 8:
            raise damaged
        (header_bytes,) = struct.unpack("<Q", start)
        if header_bytes > min(_MAX_HEADER_BYTES, size - 8):
            raise damaged
        try:
            header = json.loads(file.read(header_bytes))
            entries = [entry for name, entry in header.items() if name != "__metadata__"]
            ends = [entry["data_offsets"][1] for entry in entries]
            shapes = [entry["shape"] for entry in entries]
            numbers = Numbers(sum(map(math.prod, shapes)), sum(math.prod(shape) for shape in shapes if len(shape) == 2))
        except (ValueError, TypeError, KeyError, IndexError, AttributeError):
            raise damaged from None
    if size != 8 + header_bytes + max(ends, default=0):
        raise damaged
    return numbers


def _kind(folder: Path, unet: dict[str, Any]) -> Kind:
    """Tell the kind from the UNet: a folder's `model_index.json` may name any pipeline (LLMGA.md §7.3)."""
    path = folder / "unet" / CONFIGS["unet"]
    added = unet.get("addition_embed_type")
    if added not in (None, "text_time"):
        raise UnfitCheckpoint(
            f"{path} is neither SD1.5's nor SDXL's (its `addition_embed_type` is {str(added)[:40]!r})"
        )
    if unet.get("in_channels") not in UNET_CHANNELS or unet.get("out_channels") != 4:
        raise UnfitCheckpoint(
            f"{path} has {unet.get('in_channels')} input channels and {unet.get('out_channels')} output channels; "
            "a UNet of Stable Diffusion has 4 (an inpainting one 9) and 4"
        )
    return "sdxl" if added else "sd15"


def _check_widths(folder: Path, configs: dict[str, dict[str, Any]]) -> None:
    """Compare the channels of the text encoders with those that the UNet wants."""
    unet, path = configs["unet"], folder / "unet" / CONFIGS["unet"]
    encoders = [configs[part] for part in ("text_encoder", SECOND_ENCODER) if part in configs]
    widths = [_integer(config, "hidden_size") for config in encoders]
    wanted = _integer(unet, "cross_attention_dim")
    if sum(widths) != wanted or not all(widths):
        raise UnfitCheckpoint(
            f"{path} attends to {wanted} channels, but the text encoder has {' and '.join(map(str, widths))}: "
            "the parts are of different checkpoints"
        )
    if SECOND_ENCODER in configs:
        pooled, embed = _integer(configs[SECOND_ENCODER], "projection_dim"), _integer(unet, "addition_time_embed_dim")
        total = _integer(unet, "projection_class_embeddings_input_dim")
        if pooled + TIME_IDS * embed != total or not (pooled and embed):
            raise UnfitCheckpoint(
                f"{path} takes {total} added channels, but the second text encoder's vector has {pooled} and the "
                f"{TIME_IDS} sizes {embed} each: the parts are of different checkpoints"
            )


def _integer(config: dict[str, Any], name: str) -> int:
    """Return a number of a configuration, 0 where there is none."""
    value = config.get(name)
    return value if type(value) is int else 0


def _serving(path: Path, kind: Kind) -> ServingDefaults:
    defaults = ServingDefaults.of(kind)
    if not path.exists():
        return defaults
    try:
        return ServingDefaults.model_validate({**defaults.model_dump(), **_config(path)})
    except ValidationError as error:
        fields = ", ".join(".".join(map(str, fault["loc"])) for fault in error.errors(include_url=False))
        raise UnfitCheckpoint(f"{path}: {fields} cannot be used; correct or remove them") from error


def _content_hash(folder: Path) -> str:
    """Return the SHA-256 over the names and contents of the files that are loaded."""
    names = [f"{part}/{name}" for part, name in (*WEIGHTS.items(), *CONFIGS.items())]
    for tokenizer in ("tokenizer", SECOND_TOKENIZER):
        names += [f"{tokenizer}/{name}" for name in (*TOKENIZER, *TOKENIZER_OPTIONAL)]
    digest = hashlib.sha256()
    for name in sorted(names):
        path = folder / name
        if path.is_file():
            digest.update(f"{name}\n{file_hash(path)}\n".encode())
    return digest.hexdigest()


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_HASH_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
