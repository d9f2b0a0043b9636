"""The checkpoints that the settings name: looked at when the worker starts, loaded when they are asked for."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from services.diffusion.adapters import UnfitAdapter, inspect_adapter, those_that_fit
from services.diffusion.attention import use_xformers
from services.diffusion.batching import Buckets
from services.diffusion.checkpoints import Kind, UnfitCheckpoint, inspect
from services.diffusion.compilation import CompiledUNet, allow_graphs
from services.diffusion.conditioning import prompts
from services.diffusion.credentials import SOFTWARE, Credentials
from services.diffusion.execution import Execution
from services.diffusion.library import Shelf
from services.diffusion.loading import LoadedModel, expected_bytes, load
from services.diffusion.memory import weight_budget
from services.diffusion.previews import TinyDecoder
from services.diffusion.profile import answer, profile, worthwhile
from services.diffusion.restoration.restorer import Restorer
from shared.contracts import Phase
from shared.settings import DiffusionSettings

_log = logging.getLogger("llmga.diffusion")


@dataclass(slots=True)
class Opener:
    """Looks at checkpoints and loads them; its methods take seconds and belong into worker threads.

    `tell` is told which phase of the start-up a checkpoint is in.
    """

    settings: DiffusionSettings
    execution: Execution
    tell: Callable[[Phase, str], None]
    tiny_decoders: dict[Kind, TinyDecoder] = field(default_factory=dict)

    @property
    def budget_bytes(self) -> int:
        """Bytes that the weights of loaded checkpoints may take together."""
        return weight_budget(self.settings.memory_gb, self.execution.device)

    def inspect(self) -> dict[str, Shelf]:
        """Return what can be loaded, by its name.

        Raises:
            UnfitCheckpoint: a folder cannot be served, or does not fit the memory budget.
            UnfitAdapter: an adapter cannot be opened, or fits no checkpoint.
        """
        adapters = [inspect_adapter(name, Path(path).expanduser()) for name, path in self.settings.adapters.items()]
        unused = set(self.settings.adapters)
        shelves = {}
        for name, folder in self.settings.models.items():
            self.tell(Phase.LOADING, name)
            files = inspect(Path(folder).expanduser())
            fitting = those_that_fit(adapters, files)
            unused -= {adapter.name for adapter in fitting}
            needed = expected_bytes(files, self.execution.dtype, self.execution.quantization)
            needed += sum(adapter.path.stat().st_size for adapter in fitting)
            if needed > self.budget_bytes:
                raise UnfitCheckpoint(
                    f"{folder} takes {_gib(needed)} of weights, above the budget of {_gib(self.budget_bytes)}; "
                    "raise LLMGA_DIFFUSION__MEMORY_GB, quantise, or leave the model out"
                )
            shelves[name] = Shelf(files, needed, tuple(fitting))
        if unused:
            raise UnfitAdapter(
                f"{', '.join(sorted(unused))} fit none of the models; leave them out, or add the model they are for"
            )
        return shelves

    def load_tiny_decoders(self) -> None:
        """Load the decoders that draw previews.

        Raises:
            Unsuitable: a folder holds none.
        """
        execution = self.execution
        for kind, folder in self.settings.taesd.items():
            path = Path(folder).expanduser()
            self.tiny_decoders[kind] = TinyDecoder.load(path, device=execution.device, dtype=execution.dtype)

    def load_restorer(self) -> Restorer | None:
        """Load the restoration network, if there is one: in float32, whose rounding no eye sees, as it is small.

        Raises:
            UnfitCheckpoint: the folder holds none.
        """
        if not self.settings.restoration:
            return None
        self.tell(Phase.LOADING, "restoration")
        return Restorer.load(Path(self.settings.restoration).expanduser(), device=self.execution.device)

    def open_credentials(self) -> Credentials | None:
        """Return what pictures are signed with, if they are to be.

        Raises:
            CredentialsError: it cannot sign.
        """
        certificates, key = self.settings.c2pa_certificates, self.settings.c2pa_key
        if not (certificates or key):
            return None
        return Credentials.open(Path(certificates).expanduser(), Path(key).expanduser(), SOFTWARE)

    def load(self, name: str, shelf: Shelf) -> LoadedModel:
        """Load a checkpoint, and find out what it can do here.

        Raises:
            UnfitCheckpoint: the weights are not those that the configurations describe.
        """
        execution = self.execution
        candidates = Buckets.up_to(self.settings.max_rows)
        self.tell(Phase.LOADING, name)
        model = load(
            name,
            shelf.files,
            device=execution.device,
            dtype=execution.dtype,
            buckets=candidates,
            previewer=self.tiny_decoders.get(shelf.files.kind),
            quantization=execution.quantization,
            adapters=shelf.adapters,
            offloading=execution.offload,
        )
        if execution.attention == "xformers":
            use_xformers(model.unet)
            use_xformers(model.vae)
            model.kernels += ("xformers",)
        self.tell(Phase.WARMING_UP, name)
        model.buckets = worthwhile(model, profile(model, candidates))
        if execution.compiles:
            _compile(model)
            model.buckets = worthwhile(model, profile(model, model.buckets))
        _log.info("buckets", extra={"model": name, "rows": model.buckets.sizes, "stable": model.buckets.stable})
        return model


def _compile(model: LoadedModel) -> None:
    allow_graphs()
    unet = CompiledUNet(model.unet, lambda: model.adapters.are_in_force)
    model.unet = unet
    model.kernels += ("compiled",)
    side, lengths = model.files.sample_size, prompts.lengths(is_sdxl=model.files.kind == "sdxl")
    shapes = [(rows, side, side, tokens) for rows in model.buckets.sizes for tokens in lengths]
    unet.warm_up(shapes, lambda shape: answer(model, shape[0], 0, shape[3]))


def _gib(count: int) -> str:
    return f"{count / 2**30:.2f} GiB"
