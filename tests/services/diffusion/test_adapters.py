"""LoRA adapters: the pictures of stock diffusers, and the checkpoint's own bits without them."""

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from services.diffusion.adapters import AdapterFile, AdapterUse, UnfitAdapter, inspect_adapter, those_that_fit
from services.diffusion.batching import Buckets
from services.diffusion.checkpoints import inspect
from services.diffusion.libraries import StableDiffusionPipeline, StableDiffusionXLPipeline
from services.diffusion.loading import LoadedModel, load
from services.diffusion.planning import chosen_adapters
from services.diffusion.requests import RenderRequest
from services.diffusion.snapshots import fingerprint
from shared.contracts import GenerationRequest, Scheduler
from shared.errors import InvalidRequest
from tests.services.diffusion.conftest import MAX_ROWS, StartEngine
from tests.services.diffusion.instruments import watched
from tests.services.diffusion.loras import write_lora
from tests.services.diffusion.pictures import render, request_for, result
from tests.services.diffusion.stock import distance, reference

TOLERANCE = 1e-4
PROMPT = "a red circle"
WEIGHTS = {"chalk": 0.8, "ink": -0.5}


@dataclass(frozen=True)
class Kit:
    """A checkpoint with two adapters, here and in diffusers' own pipeline."""

    model: LoadedModel
    stock: Any
    files: dict[str, AdapterFile]

    def uses(self, *names: str) -> tuple[AdapterUse, ...]:
        return tuple(AdapterUse(name, WEIGHTS[name], self.files[name].sha256) for name in sorted(names))

    def request(self, *names: str, **settings: Any) -> RenderRequest:
        return request_for(self.model, PROMPT, "a boat", adapters=self.uses(*names), **SETTINGS, **settings)

    def expected(self, *names: str) -> torch.Tensor:
        if names:
            self.stock.enable_lora()
            self.stock.set_adapters(list(names), [WEIGHTS[name] for name in names])
        else:
            self.stock.disable_lora()
        latents: torch.Tensor = reference(
            self.stock,
            Scheduler.DDIM,
            "latent",
            prompt=PROMPT,
            negative_prompt="a boat",
            height=128,
            width=128,
            num_inference_steps=3,
            guidance_scale=5.0,
            seed=0,
        )
        return latents


SETTINGS: dict[str, Any] = {"steps": 3, "guidance": 5.0, "scheduler": Scheduler.DDIM}


def build_kit(mini: Path, folder: Path, pipeline: Any, *, is_sdxl: bool) -> Kit:
    paths = {
        "chalk": write_lora(mini, folder / "chalk", seed=1, is_sdxl=is_sdxl),
        "ink": write_lora(mini, folder / "ink", seed=2, is_sdxl=is_sdxl, text=False),
    }
    files = {name: inspect_adapter(name, path) for name, path in paths.items()}
    device, dtype = torch.device("cpu"), torch.float32
    checkpoint = inspect(mini)
    fitting = those_that_fit(files.values(), checkpoint)
    assert fitting == list(files.values())
    buckets = Buckets.up_to(MAX_ROWS)
    model = load("kit", checkpoint, device=device, dtype=dtype, buckets=buckets, adapters=fitting)
    stock = pipeline.from_pretrained(mini)
    stock.set_progress_bar_config(disable=True)
    for name, path in paths.items():
        stock.load_lora_weights(str(path.parent), adapter_name=name, weight_name=path.name)
    return Kit(model, stock, files)


@pytest.fixture(scope="module")
def kit(mini: Path, tmp_path_factory: pytest.TempPathFactory) -> Kit:
    return build_kit(mini, tmp_path_factory.mktemp("loras"), StableDiffusionPipeline, is_sdxl=False)


@pytest.fixture(scope="module")
def sdxl_kit(sdxl_mini: Path, tmp_path_factory: pytest.TempPathFactory) -> Kit:
    return build_kit(sdxl_mini, tmp_path_factory.mktemp("loras"), StableDiffusionXLPipeline, is_sdxl=True)


@pytest.mark.parametrize("kind", ["kit", "sdxl_kit"])
async def test_pictures_with_adapters_are_those_of_stock_diffusers(
    kind: str, request: pytest.FixtureRequest, start_engine: StartEngine
) -> None:
    kit: Kit = request.getfixturevalue(kind)
    engine = start_engine(kit.model)
    plain = kit.expected()
    for names in (["chalk"], ["chalk", "ink"], []):
        wanted = kit.request(*names)
        await render(engine, wanted)
        expected = kit.expected(*names)
        assert distance(wanted, expected) <= TOLERANCE
        assert bool((expected - plain).abs().max() > 0.1) == bool(names), (
            "an adapter that changes nothing tests nothing"
        )


async def test_without_adapters_the_bits_are_those_of_the_checkpoint_whatever_was_in_force_before(
    kit: Kit, model: LoadedModel, start_engine: StartEngine
) -> None:
    own = request_for(model, PROMPT, "a boat", **SETTINGS)
    await render(start_engine(model), own)
    engine = start_engine(kit.model)
    pictures: dict[tuple[str, ...], torch.Tensor] = {}
    for names in ((), ("chalk",), (), ("chalk", "ink"), ("ink",), ("chalk",), ("chalk", "ink"), ()):
        wanted = kit.request(*names)
        await render(engine, wanted)
        assert torch.equal(pictures.setdefault(names, wanted.latents), wanted.latents)
    assert torch.equal(pictures[()], own.latents)
    assert len({tensor.sum().item() for tensor in pictures.values()}) == 4


async def test_requests_with_different_adapters_share_no_call_and_change_nothing_for_each_other(
    kit: Kit, start_engine: StartEngine
) -> None:
    sets: list[tuple[str, ...]] = [(), ("chalk",), ("chalk", "ink")]
    alone = []
    engine = start_engine(kit.model)
    for names in sets:
        wanted = kit.request(*names)
        await render(engine, wanted)
        alone.append(wanted.latents)
    calls_alone = engine.counters.calls

    in_force: list[tuple[AdapterUse, ...]] = []
    rows: list[int] = []

    def look(sample: torch.Tensor, _: torch.Tensor) -> None:
        in_force.append(kit.model.adapters._now)
        rows.append(int((sample != 0).flatten(1).any(1).sum()))

    together = start_engine(watched(kit.model, look))
    requests = [kit.request(*names) for names in sets for _ in range(2)]
    handles = [together.submit(one) for one in requests]
    for handle in handles:
        assert await result(handle) is not None
    assert together.counters.calls >= calls_alone
    assert {frozenset(use.name for use in uses) for uses in in_force} == {frozenset(names) for names in sets}
    assert max(rows) == 4, "only the two of one set"
    for index, wanted in enumerate(requests):
        assert torch.equal(wanted.latents, alone[index // 2])


async def test_another_weight_is_another_picture_and_another_snapshot(kit: Kit, start_engine: StartEngine) -> None:
    engine = start_engine(kit.model)
    full = kit.request("chalk")
    (use,) = full.picture.adapters
    half = request_for(kit.model, PROMPT, "a boat", adapters=(use._replace(weight=0.4),), **SETTINGS)
    none = request_for(kit.model, PROMPT, "a boat", adapters=(use._replace(weight=0.0),), **SETTINGS)
    for one in (full, half, none):
        await render(engine, one)
    assert float((full.latents - half.latents).abs().max()) > 0.01
    plain = kit.request()
    await render(engine, plain)
    assert float((none.latents - plain.latents).abs().max()) <= TOLERANCE
    marks = {fingerprint(one.picture, kit.model) for one in (full, half, none, plain)}
    assert len(marks) == 4
    other = replace(full.picture, adapters=(use._replace(sha256="0" * 64),))
    assert fingerprint(other, kit.model) not in marks, "another file of the same name"


async def test_a_prompt_is_encoded_anew_under_other_adapters(kit: Kit, start_engine: StartEngine) -> None:
    running = start_engine(kit.model)
    before = kit.model.encoder.calls
    for names in (("chalk",), ("ink",), ("chalk",)):
        await render(running, request_for(kit.model, "a prompt of its own", adapters=kit.uses(*names), steps=1))
    assert kit.model.encoder.calls - before == 4, "prompt and empty prompt, once for each set"


def test_only_adapters_whose_layers_a_checkpoint_has_fit_it(
    kit: Kit, sdxl_kit: Kit, mini: Path, sdxl_mini: Path
) -> None:
    both = [kit.files["chalk"], sdxl_kit.files["chalk"]]
    assert those_that_fit(both, inspect(mini)) == [kit.files["chalk"]]
    assert those_that_fit(both, inspect(sdxl_mini)) == [sdxl_kit.files["chalk"]]


def test_an_unknown_adapter_is_refused_with_those_that_the_model_has(kit: Kit) -> None:
    request = GenerationRequest(instruction="a", adapters=[{"name": "ink"}, {"name": "oil", "weight": 2}])
    with pytest.raises(InvalidRequest) as caught:
        chosen_adapters(request, kit.model)
    assert [(problem.field, problem.message) for problem in caught.value.errors] == [
        ("adapters", "`kit` offers chalk, ink")
    ]
    one = GenerationRequest(instruction="a", adapters=[{"name": "ink"}, {"name": "chalk", "weight": 2}])
    other = GenerationRequest(instruction="a", adapters=[{"name": "chalk", "weight": 2}, {"name": "ink"}])
    assert chosen_adapters(one, kit.model) == chosen_adapters(other, kit.model), "one set, one key"


def test_only_whole_safetensors_files_are_opened(kit: Kit, tmp_path: Path) -> None:
    whole = kit.files["chalk"].path

    def refused(path: Path) -> str:
        with pytest.raises(UnfitAdapter) as caught:
            inspect_adapter("x", path)
        return str(caught.value)

    assert "is no safetensors file" in refused(tmp_path / "absent.safetensors")
    pickle = tmp_path / "pickle" / "pytorch_lora_weights.bin"
    pickle.parent.mkdir()
    shutil.copy(whole, pickle)
    assert "is no safetensors file" in refused(pickle)
    assert "holds 0 safetensors files" in refused(pickle.parent)
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(whole.read_bytes()[:-1])
    assert "is not a whole safetensors file" in refused(cut)
    assert inspect_adapter("x", whole.parent).path == whole
    shutil.copy(whole, tmp_path / "other.safetensors")
    assert "name the adapter's file itself" in refused(tmp_path)
