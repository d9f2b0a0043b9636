"""How checkpoints are held and computed: the options, tried out, and what they change of a picture."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from services.diffusion import attention, compilation
from services.diffusion.attention import choose_attention
from services.diffusion.batching import Buckets
from services.diffusion.checkpoints import CheckpointFiles
from services.diffusion.compilation import CompiledUNet
from services.diffusion.execution import Execution
from services.diffusion.libraries import UNet2DConditionModel
from services.diffusion.loading import LoadedModel, load
from services.diffusion.offload import offload
from services.diffusion.profile import answer, profile
from services.diffusion.quantization import Quantization, works_on
from shared import metrics
from shared.settings import DiffusionSettings, Settings, SettingsError
from tests.services.diffusion.conftest import StartEngine
from tests.services.diffusion.pictures import render, request_for

CPU = torch.device("cpu")
# Of the UNet's answer, against float32: rounding to 8 bits and a scale per row, to 16 levels and a scale per 64.
TOLERANCE: dict[Quantization, float] = {"bitsandbytes-8bit": 0.02, "bitsandbytes-4bit": 0.15}


def execution(**options: Any) -> Execution:
    return Execution.of(Settings(device="cpu", diffusion=DiffusionSettings(**options)))


def test_the_live_choices_are_told() -> None:
    assert execution().describe() == {
        "device": "cpu",
        "dtype": "float32",
        "attention": "sdpa",
        "offload": "none",
        "quantization": "none",
        "compile": "off",
    }


def test_xformers_is_used_where_its_kernels_load_and_refused_where_they_do_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gpu = torch.device("cuda:0")
    with pytest.raises(SettingsError, match=r"LLMGA_DIFFUSION__ATTENTION.*use auto or sdpa"):
        execution(attention="xformers")
    monkeypatch.setattr(attention, "xformers_works_on", lambda device, _: device.type == "cuda")  # as on a GPU
    assert choose_attention("auto", gpu, torch.float16) == "xformers"
    assert choose_attention("xformers", gpu, torch.float16) == "xformers"
    assert choose_attention("sdpa", gpu, torch.float16) == "sdpa"
    assert choose_attention("auto", CPU, torch.float32) == "sdpa"


def test_offload_on_a_cpu_is_said_to_be_without_effect(caplog: pytest.LogCaptureFixture) -> None:
    assert execution(offload="model").offload == "none"
    assert "has no effect on a CPU" in caplog.text


def test_what_does_not_work_here_is_refused_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compilation, "works_on", lambda _: False)
    with pytest.raises(SettingsError, match=r"install a C\+\+ compiler"):
        execution(compile="on")
    assert not works_on(torch.device("meta"), "bitsandbytes-4bit")


@pytest.mark.parametrize("quantization", ["bitsandbytes-8bit", "bitsandbytes-4bit"])
async def test_weights_in_fewer_bits_are_close_and_keep_pictures_apart(
    files: CheckpointFiles, model: LoadedModel, start_engine: StartEngine, quantization: Quantization
) -> None:
    assert works_on(CPU, quantization)
    candidates = Buckets.up_to(8)
    rounded = load("mini", files, device=CPU, dtype=torch.float32, buckets=candidates, quantization=quantization)
    assert rounded.bytes < 0.9 * model.bytes
    exact, near = answer(model, 4, 0), answer(rounded, 4, 0)
    error = float((near - exact).norm() / exact.norm())
    assert 0 < error < TOLERANCE[quantization]
    assert set(profile(rounded, candidates).stable) >= {4, 8}, "no row sees another's activations"
    pixels = await render(start_engine(rounded), request_for(rounded, steps=2))
    assert pixels.shape == (128, 128, 3)


class Part(torch.nn.Module):
    """A part that tells where it is sent: there is no second device here to be on."""

    def __init__(self, name: str, moves: list[str]) -> None:
        super().__init__()
        self.name = name
        self.moves = moves

    def to(self, device: torch.device) -> "Part":  # type: ignore[override]
        self.moves.append(f"{self.name} to {device.type}")
        return self

    def forward(self) -> None:
        self.moves.append(f"{self.name} is called")


@pytest.mark.parametrize("kind", ["encoders", "model"])
def test_parts_come_to_the_device_when_they_are_called_and_make_room_for_each_other(kind: Any) -> None:
    moves: list[str] = []
    unet, vae, encoder = (Part(name, moves) for name in ("unet", "vae", "encoder"))
    offload(unet, (vae, encoder), kind, torch.device("cuda"))
    home = "cuda" if kind == "encoders" else "cpu"
    assert moves == [f"unet to {home}", "vae to cpu", "encoder to cpu"]
    del moves[:]
    encoder()
    encoder()
    unet()
    vae()
    unet()
    comes, goes = (["unet to cuda"], ["unet to cpu"]) if kind == "model" else ([], [])
    assert moves == [
        "encoder to cuda",
        "encoder is called",
        "encoder is called",
        "encoder to cpu",
        *comes,
        "unet is called",
        *goes,
        "vae to cuda",
        "vae is called",
        "vae to cpu",
        *comes,
        "unet is called",
    ]


async def test_parts_that_are_moved_by_hooks_make_the_same_bits(
    files: CheckpointFiles, model: LoadedModel, start_engine: StartEngine
) -> None:
    moved = load("mini", files, device=CPU, dtype=torch.float32, buckets=Buckets.up_to(4), offloading="model")
    here, there = request_for(model, steps=2), request_for(moved, steps=2)
    same = await render(start_engine(moved), there)
    assert (await render(start_engine(model), here) == same).all()
    assert torch.equal(here.latents, there.latents)


def recompiles() -> float:
    return metrics.REGISTRY.get_sample_value("llmga_diffusion_recompiles_total") or 0.0


def compiled(model: LoadedModel, backend: str) -> tuple[LoadedModel, CompiledUNet]:
    unet = CompiledUNet(model.unet, lambda: model.adapters.are_in_force, backend=backend)
    other = replace(model, unet=unet, buckets=Buckets([4, 8]))
    shapes = [(rows, 16, 16, 77) for rows in other.buckets.sizes]
    unet.warm_up(shapes, lambda shape: answer(other, shape[0], 0, shape[3]))
    return other, unet


async def check_that_nothing_is_compiled_later(
    model: LoadedModel, start_engine: StartEngine, backend: str, tolerance: float
) -> None:
    other, unet = compiled(model, backend)
    assert unet.graphs >= 2, "one for each bucket"
    graphs, before = unet.graphs, recompiles()
    engine = start_engine(other)
    mixed = [
        request_for(other, "a", steps=2),
        request_for(other, "b", steps=3, guidance=1.0),
        request_for(other, "c", steps=2, size=(64, 96)),
        request_for(other, "d", steps=2),
    ]
    handles = [engine.submit(one) for one in mixed]
    for handle in handles:
        async for _ in handle.events():
            pass
    assert unet.graphs == graphs
    assert recompiles() == before
    unet._shapes.add((16, 16, 16, 77))  # as if the warm-up had left it out
    answer(other, 16, 0)
    assert recompiles() == before + 1, "a graph that is made late is counted"
    plain = request_for(model, "a", steps=2)
    await render(start_engine(model), plain)
    assert float((plain.latents - mixed[0].latents).abs().max()) <= tolerance


@pytest.fixture
def small(model: LoadedModel) -> LoadedModel:
    """Return the run's checkpoint with a UNet of one block, which is traced in seconds."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        block_out_channels=(16,),
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",),
        layers_per_block=1,
        cross_attention_dim=model.files.unet["cross_attention_dim"],
        attention_head_dim=4,
        norm_num_groups=4,
    )
    return replace(model, unet=unet.eval().requires_grad_(False))


async def test_mixed_requests_compile_nothing_after_the_warm_up(small: LoadedModel, start_engine: StartEngine) -> None:
    await check_that_nothing_is_compiled_later(small, start_engine, "eager", 0.0)


@pytest.mark.deep
@pytest.mark.timeout(1_800)
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # of torch's compiler about torch
async def test_mixed_requests_compile_nothing_after_the_warm_up_of_real_kernels(
    small: LoadedModel, start_engine: StartEngine
) -> None:
    assert compilation.works_on(CPU)
    await check_that_nothing_is_compiled_later(small, start_engine, "inductor", 1e-3)
