"""Previews show where a picture is going, cost a share of the time at most, and change no byte of it."""

import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import avg_pool2d

from services.diffusion.checkpoints import inspect
from services.diffusion.engine import Engine
from services.diffusion.handles import Bell, Finished, Handle, Preview, Progress
from services.diffusion.libraries import AutoencoderKL, AutoencoderTiny
from services.diffusion.loading import LoadedModel
from services.diffusion.previews import (
    DEVICE_SHARE,
    MAX_SIDE_PX,
    Allowance,
    LinearMap,
    TinyDecoder,
    Unsuitable,
    calls_shown,
)
from services.diffusion.solvers import Solver
from services.diffusion.stages import Pixels
from shared.contracts import Scheduler
from shared.errors import InternalError
from tests.services.diffusion.conftest import StartEngine
from tests.services.diffusion.pictures import png, render, request_for

TRAINED = Path(__file__).parents[3] / "models" / "llmga-tiny" / "sd15"
FEW = Scheduler.DDIM
COMMON = (Scheduler.EULER_ANCESTRAL, Scheduler.DPMPP_2M_SDE, Scheduler.HEUN)  # that draw noise, that look back twice


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a tiny autoencoder with random weights."""
    folder = tmp_path_factory.mktemp("taesd")
    torch.manual_seed(0)
    AutoencoderTiny(
        encoder_block_out_channels=(8,) * 4, decoder_block_out_channels=(8,) * 4, num_decoder_blocks=(1, 1, 1, 1)
    ).save_pretrained(folder, safe_serialization=True)
    return folder


async def watched_until_the_end(handle: Handle) -> tuple[Pixels, list[Preview]]:
    previews = []
    async for event in handle.events():
        if isinstance(event, Preview):
            previews.append(event)
        if isinstance(event, Finished):
            return event.pixels, previews
    raise AssertionError("the picture was not finished")


def unseen_latents(vae: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Return latents of pictures that no map was fitted to, and the colors that they are decoded to."""
    generator = torch.Generator().manual_seed(5)
    pictures = torch.rand((4, 3, 6, 6), generator=generator).repeat_interleave(16, 2).repeat_interleave(16, 3) * 2 - 1
    with torch.inference_mode():
        latents = vae.encode(pictures).latent_dist.mode()
        decoded = vae.decode(latents, return_dict=False)[0].clamp(-1, 1)
    return latents * vae.config.scaling_factor, avg_pool2d(decoded, 8)


def errors_of(fitted: LinearMap, latents: torch.Tensor, colors: torch.Tensor) -> tuple[float, float]:
    """Return the squared error of the map, and that of the best single color."""
    predicted = torch.einsum("oc,nchw->nohw", fitted.weight, latents) + fitted.bias[:, None, None]
    flat = colors.mean((0, 2, 3), keepdim=True)
    return float((predicted - colors).square().mean()), float((flat - colors).square().mean())


def test_the_fitted_map_is_nearer_to_the_decoder_than_any_single_color(model: LoadedModel) -> None:
    fitted = LinearMap.fit(model.vae)
    error, flat = errors_of(fitted, *unseen_latents(model.vae))
    assert error < flat, "a random decoder is hardly linear, but not at all unlike its latents"
    again = LinearMap.fit(model.vae)
    assert torch.equal(fitted.weight, again.weight)
    assert torch.equal(fitted.bias, again.bias)


def test_the_map_of_a_trained_autoencoder_explains_most_of_what_is_decoded() -> None:
    vae = AutoencoderKL.from_pretrained(inspect(TRAINED).folder / "vae", use_safetensors=True).eval()
    error, flat = errors_of(LinearMap.fit(vae), *unseen_latents(vae))
    assert error < 0.3 * flat


def test_a_linear_preview_is_one_pixel_per_latent() -> None:
    colors = LinearMap(torch.eye(3, 4), torch.zeros(3))
    latents = torch.zeros(1, 4, 5, 7)
    latents[0, 0], latents[0, 1] = 1.0, -3.0
    pixels = colors(latents)
    assert pixels.shape == (5, 7, 3)
    assert pixels.dtype == torch.uint8
    assert pixels[2, 2].tolist() == [255, 0, 128]
    assert colors(latents * torch.nan)[2, 2].tolist() == [128, 128, 128]


def test_a_tiny_decoder_draws_the_previews_and_is_scaled_to_their_side(tiny: Path) -> None:
    decoder = TinyDecoder.load(tiny, device=torch.device("cpu"), dtype=torch.float32)
    with torch.inference_mode():
        assert decoder(torch.randn(1, 4, 8, 4)).shape == (64, 32, 3)
        assert decoder(torch.randn(1, 4, 64, 32)).shape == (MAX_SIDE_PX, MAX_SIDE_PX // 2, 3)


def test_a_folder_without_a_tiny_autoencoder_is_refused(tmp_path: Path, mini: Path) -> None:
    for folder in (tmp_path, mini / "vae"):
        with pytest.raises(Unsuitable, match="tiny autoencoder"):
            TinyDecoder.load(folder, device=torch.device("cpu"), dtype=torch.float32)


def test_previews_are_spread_evenly_and_leave_out_the_last_call() -> None:
    assert calls_shown(20, 3) == {5, 10, 15}
    assert calls_shown(50, 4) == {10, 20, 30, 40}
    assert calls_shown(4, 8) == {1, 2, 3}
    assert calls_shown(1, 8) == calls_shown(20, 0) == frozenset()
    for calls in range(1, 60):
        for previews in range(9):
            shown = calls_shown(calls, previews)
            assert len(shown) <= previews
            assert all(0 < call < calls for call in shown)


def test_an_allowance_is_paid_back_before_the_next_preview() -> None:
    allowance = Allowance(share=0.1)
    assert allowance.is_left
    allowance.spend(1.0)
    for _ in range(99):
        allowance.earn(0.1)
        assert not allowance.is_left
    allowance.earn(0.2)
    assert allowance.is_left
    for _ in range(1_000):
        allowance.earn(10.0)
    allowance.spend(0.1)
    assert not allowance.is_left, "what was not used is not saved for ever"


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("kind", [FEW, Scheduler.EULER, Scheduler.EULER_ANCESTRAL, Scheduler.HEUN, Scheduler.DPMPP_2M])
def test_the_clean_latents_are_those_of_diffusers(kind: Scheduler, prediction: str, model: LoadedModel) -> None:
    config = {**model.files.scheduler, "prediction_type": prediction}
    solver = Solver(kind, config, 6, torch.Generator().manual_seed(0), torch.device("cpu"))
    scheduler = solver._scheduler
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn((1, 4, 8, 8), generator=generator) * solver.init_noise_sigma
    for call in range(solver.calls):
        noise_pred = torch.randn((1, 4, 8, 8), generator=generator)
        solver.scale_model_input(latents, call)
        denoised = solver.denoised(noise_pred, call, latents)
        is_second_order = kind is Scheduler.HEUN and call % 2  # it then returns the mean of two answers
        if kind is Scheduler.DPMPP_2M:
            latents = solver.step(noise_pred, call, latents)
            expected = scheduler.model_outputs[-1]
        else:
            latents, expected = scheduler.step(noise_pred, solver.timesteps[call], latents, return_dict=False)
        if not is_second_order:
            assert float((denoised - expected).abs().max()) < 0.01 * float(expected.abs().max()), (
                "to a part of a timestep"
            )


@pytest.mark.parametrize(
    "kind",
    [pytest.param(kind, marks=[] if kind in COMMON else pytest.mark.deep) for kind in Scheduler],
)
async def test_previews_change_no_byte_of_the_picture(kind: Scheduler, engine: Engine, model: LoadedModel) -> None:
    plain = png(await render(engine, request_for(model, steps=6, scheduler=kind)))
    pixels, previews = await watched_until_the_end(
        engine.submit(request_for(model, steps=6, scheduler=kind, previews=5))
    )
    assert png(pixels) == plain
    assert previews, "the first one is always within the allowance"
    for preview in previews:
        assert preview.pixels.shape == (16, 16, 3)
        assert preview.progress.step < preview.progress.total_steps


class Knowing:
    """A UNet that knows the clean latents: its answer is exactly the noise over them."""

    def __init__(self, latents: torch.Tensor, alphas: torch.Tensor) -> None:
        self.latents = latents
        self.alphas = alphas

    def __call__(self, sample: torch.Tensor, timesteps: torch.Tensor, **_: Any) -> tuple[torch.Tensor]:
        alpha = self.alphas[timesteps.long()].view(-1, 1, 1, 1)
        return ((sample - alpha.sqrt() * self.latents) / (1 - alpha).sqrt(),)


async def test_a_preview_shows_where_the_steps_lead_and_not_their_noise(
    start_engine: StartEngine, model: LoadedModel
) -> None:
    gradient = torch.linspace(-2, 2, 16).expand(1, 4, 16, 16)
    solver = request_for(model, steps=5, scheduler=FEW).solver
    colors = LinearMap(torch.eye(3, 4), torch.zeros(3))
    engine = start_engine(replace(model, unet=Knowing(gradient, solver._scheduler.alphas_cumprod), previewer=colors))
    _, previews = await watched_until_the_end(engine.submit(request_for(model, steps=5, scheduler=FEW, previews=4)))
    assert previews
    for preview in previews:
        wrong = np.abs(preview.pixels.astype(int) - colors(gradient).numpy()).max()
        assert wrong <= 1, f"at step {preview.progress.step}"


async def test_previews_take_no_more_than_their_share(start_engine: StartEngine, model: LoadedModel) -> None:
    taken_s = 0.1
    count = 0

    def slow(latents: torch.Tensor) -> torch.Tensor:
        nonlocal count
        count += 1
        time.sleep(taken_s)
        return torch.zeros(1, 1, 3, dtype=torch.uint8)

    engine = start_engine(replace(model, previewer=slow))
    started = time.perf_counter()
    await render(engine, request_for(model, steps=30, scheduler=FEW, previews=29))
    elapsed_s = time.perf_counter() - started
    assert count >= 1
    assert (count - 1) * taken_s <= DEVICE_SHARE * elapsed_s


async def test_a_previewer_that_fails_costs_the_preview_only(start_engine: StartEngine, model: LoadedModel) -> None:
    def failing(latents: torch.Tensor) -> torch.Tensor:
        raise MemoryError

    engine = start_engine(replace(model, previewer=failing))
    pixels, previews = await watched_until_the_end(engine.submit(request_for(model, scheduler=FEW, previews=3)))
    assert png(pixels) == png(await render(engine, request_for(model, scheduler=FEW)))
    assert previews == []


async def test_no_preview_is_told_behind_the_end() -> None:
    bell = Bell()
    for outcome in (InternalError("over"), None):
        handle = Handle(lambda: None, bell)
        handle.show(Preview(Progress(3, 4), np.zeros((1, 1, 3), np.uint8)))
        handle.end(outcome)
        bell.ring()
        with pytest.raises(InternalError) if outcome else nullcontext():
            assert [event async for event in handle.events()] == []
