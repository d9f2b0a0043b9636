"""LoRA adapters (Hu et al. 2022): which of them fit a checkpoint, and which are in force for the next call.

All that fit a checkpoint are loaded with it, beside its weights, and none is in force at first. Putting a set into
force changes no weight, so a call without adapters gives the very bits of the checkpoint, whatever was in force before.
Adapters are read by diffusers, from safetensors only, in its own format or kohya's; whether one fits is tried on a
skeleton of the checkpoint that holds no weights.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from services.diffusion.checkpoints import (
    SECOND_ENCODER,
    CheckpointFiles,
    UnfitCheckpoint,
    check_safetensors,
    file_hash,
)
from services.diffusion.libraries import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    StableDiffusionLoraLoader,
    StableDiffusionXLLoraLoader,
    UNet2DConditionModel,
    adapted_layers,
    expected_to_fail,
    quiet,
)

PUBLISHED_NAME = "pytorch_lora_weights.safetensors"  # as diffusers saves one in a folder


class UnfitAdapter(Exception):
    """The adapter cannot be served; the message names the file and what to do."""


class AdapterUse(NamedTuple):
    """An adapter in force: `weight` 1 is as it was trained; the hash says which of that name."""

    name: str
    weight: float
    sha256: str


@dataclass(frozen=True, slots=True)
class AdapterFile:
    """An adapter on disk that may be opened."""

    name: str
    path: Path
    sha256: str


def inspect_adapter(name: str, path: Path) -> AdapterFile:
    """Return an adapter's file: the one that is named, or the one in a folder.

    Raises:
        UnfitAdapter: there is none, it is damaged, or it is not safetensors.
    """
    if path.is_dir():
        found = sorted(path.glob("*.safetensors"))
        published = path / PUBLISHED_NAME
        if published not in found and len(found) != 1:
            raise UnfitAdapter(f"{path} holds {len(found)} safetensors files; name the adapter's file itself")
        path = published if published in found else found[0]
    if path.suffix != ".safetensors" or not path.is_file():
        raise UnfitAdapter(f"{path} is no safetensors file; nothing else is opened, as a pickle can run code")
    try:
        check_safetensors(path)
    except UnfitCheckpoint as error:
        raise UnfitAdapter(str(error)) from error
    return AdapterFile(name, path, file_hash(path))


def those_that_fit(adapters: Iterable[AdapterFile], files: CheckpointFiles) -> list[AdapterFile]:
    """Return the adapters whose layers are all in this checkpoint, with the same widths."""
    return [adapter for adapter in adapters if _fits(adapter, files)]


class Adapters:
    """The adapters of one loaded checkpoint; belongs to the device thread."""

    def __init__(self, files: CheckpointFiles, unet: Any, text_encoders: Sequence[Any], found: Sequence[AdapterFile]):
        """Attach all of `found` to the parts; they have to fit."""
        self.sha256: Mapping[str, str] = {adapter.name: adapter.sha256 for adapter in found}
        self._now: tuple[AdapterUse, ...] = ()
        for adapter in found:
            _attach(adapter, files, unet, text_encoders)
        self._layers = [layer for part in (unet, *text_encoders) if found for layer in adapted_layers(part)]
        self._switch_off()

    @property
    def are_in_force(self) -> bool:
        """Whether the next call differs from the checkpoint's own."""
        return bool(self._now)

    def use(self, wanted: tuple[AdapterUse, ...]) -> None:
        """Put exactly these into force."""
        if wanted == self._now:
            return
        if not wanted:
            self._switch_off()
        else:
            names = [use.name for use in wanted]
            for layer in self._layers:
                layer.enable_adapters(True)
                layer.set_adapter(names, inference_mode=True)
                for use in wanted:
                    layer.set_scale(use.name, use.weight)
        self._now = wanted

    def _switch_off(self) -> None:
        for layer in self._layers:
            layer.enable_adapters(False)


def _attach(adapter: AdapterFile, files: CheckpointFiles, unet: Any, text_encoders: Sequence[Any]) -> int:
    """Put an adapter beside the weights of the parts; return how many tensors of it are for them."""
    loader = StableDiffusionXLLoraLoader if files.kind == "sdxl" else StableDiffusionLoraLoader
    config = {"unet_config": unet.config} if files.kind == "sdxl" else {}
    state, alphas, metadata = loader.lora_state_dict(
        str(adapter.path.parent),
        weight_name=adapter.path.name,
        use_safetensors=True,
        local_files_only=True,
        return_lora_metadata=True,
        **config,
    )
    common: dict[str, Any] = {
        "network_alphas": alphas,
        "metadata": metadata,
        "adapter_name": adapter.name,
        "low_cpu_mem_usage": True,
    }
    if any(key.startswith("unet.") for key in state):
        loader.load_lora_into_unet(state, unet=unet, **common)
    for prefix, text_encoder in zip(("text_encoder", SECOND_ENCODER), text_encoders, strict=False):
        if any(key.startswith(f"{prefix}.") for key in state):
            loader.load_lora_into_text_encoder(state, text_encoder=text_encoder, prefix=prefix, **common)
    return len(state)


def _fits(adapter: AdapterFile, files: CheckpointFiles) -> bool:
    quiet()
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(files.unet)
        text_encoders = [CLIPTextModel(CLIPTextConfig.from_pretrained(files.folder / "text_encoder"))]
        if files.kind == "sdxl":
            config = CLIPTextConfig.from_pretrained(files.folder / SECOND_ENCODER)
            text_encoders.append(CLIPTextModelWithProjection(config))
    try:
        with expected_to_fail():
            given = _attach(adapter, files, unet, text_encoders)
    except Exception:  # whatever the libraries say of layers that are missing or of other widths
        return False
    parts = (unet, *text_encoders)
    taken = sum(".lora_" in name for part in parts for name, _ in part.named_parameters())
    return taken == given > 0
