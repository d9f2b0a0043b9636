"""Inpainting and image-to-image are correct when they equal the stock pipelines of these names, for every scheduler."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import diffusers
import pytest
import torch
from PIL import Image

from services.diffusion.engine import Engine
from services.diffusion.loading import LoadedModel
from services.diffusion.requests import RenderRequest
from services.diffusion.sources import Source
from shared.contracts import Scheduler
from shared.errors import InvalidRequest
from tests.services.diffusion.conftest import StartEngine
from tests.services.diffusion.pictures import render, request_for, result
from tests.services.diffusion.sources import source
from tests.services.diffusion.stock import TOLERANCE, distance, guidance_of, reference

SIZE = (64, 72)
STEPS = 5


@dataclass(frozen=True)
class Case:
    """A model, and its stock pipeline."""

    model: LoadedModel
    stock: Any


def pipeline(name: str, stock: Any, model: LoadedModel) -> Any:
    """Return another stock pipeline over the parts of one, with the model's own UNet."""
    parts = {**stock.components, "unet": model.unet}
    options = {"add_watermarker": False} if "XL" in name else {"requires_safety_checker": False}
    other = getattr(diffusers, name)(**parts, **options)
    other.register_to_config(_name_or_path=stock.config._name_or_path)
    other.set_progress_bar_config(disable=True)
    return other


@pytest.fixture(scope="module")
def cases(
    model: LoadedModel,
    inpainting_model: LoadedModel,
    stock: Any,
    sdxl_inpainting_model: LoadedModel,
    sdxl_stock: Any,
) -> dict[str, Case]:
    """Return what there is to compare, by name."""
    sd15, sdxl = "StableDiffusionInpaintPipeline", "StableDiffusionXLInpaintPipeline"
    return {
        "sd15, 9 channels": Case(inpainting_model, pipeline(sd15, stock, inpainting_model)),
        "sd15, 4 channels": Case(model, pipeline(sd15, stock, model)),
        "sdxl, 9 channels": Case(sdxl_inpainting_model, pipeline(sdxl, sdxl_stock, sdxl_inpainting_model)),
    }


def pairs_of(*names: str) -> list[Any]:
    """Return a test's checkpoints with all schedulers; of SDXL, which is slow, most of them are `deep`."""
    usual = (Scheduler.EULER, Scheduler.PNDM, Scheduler.DPMPP_2M_SDE)  # one call a step, more than one, with noise
    return [
        pytest.param(name, kind, marks=[pytest.mark.deep] if "sdxl" in name and kind not in usual else [])
        for name in names
        for kind in Scheduler
    ]


def modest_guidance_of(kind: Scheduler) -> float:
    """Return a guidance scale that random weights bear also beside a picture."""
    return min(3.0, guidance_of(kind))


def stock_latents(stock: Any, kind: Scheduler, given: Source, seed: int) -> torch.Tensor:
    """Return what the stock pipeline makes of a source."""
    masked = {} if given.mask is None else {"mask_image": Image.fromarray(given.mask).convert("L")}
    sized = {} if given.mask is None else {"width": SIZE[0], "height": SIZE[1]}
    latents: torch.Tensor = reference(
        stock,
        kind,
        "latent",
        prompt="a snowman at night",
        negative_prompt="a red circle",
        image=Image.fromarray(given.pixels),
        strength=given.strength,
        num_inference_steps=STEPS,
        guidance_scale=modest_guidance_of(kind),
        seed=seed,
        **masked,
        **sized,
    )
    return latents


def request_of(model: LoadedModel, kind: Scheduler, given: Source, seed: int) -> RenderRequest:
    return request_for(
        model,
        "a snowman at night",
        "a red circle",
        size=SIZE,
        seed=seed,
        steps=STEPS,
        guidance=modest_guidance_of(kind),
        scheduler=kind,
        source=given,
    )


async def among_strangers(engine: Engine, wanted: Callable[[], RenderRequest], model: LoadedModel) -> RenderRequest:
    """Return the request, rendered beside others of its batch key."""
    strangers = [
        engine.submit(
            request_for(
                model,
                f"a stranger {seed}",
                size=SIZE,
                seed=seed,
                steps=2 + 3 * seed,
                guidance=1.0 + seed,
                scheduler=kind,
                source=source(SIZE, seed=seed, strength=1 - seed / 2),
            )
        )
        for seed, kind in enumerate([Scheduler.EULER_ANCESTRAL, Scheduler.HEUN])
    ]
    request = wanted()
    await render(engine, request)
    for stranger in strangers:
        assert await result(stranger) is not None
    return request


@pytest.mark.parametrize(("name", "kind"), pairs_of("sd15, 9 channels", "sd15, 4 channels", "sdxl, 9 channels"))
async def test_inpainting_equals_the_stock_pipelines_alone_and_among_strangers(
    start_engine: StartEngine, cases: dict[str, Case], name: str, kind: Scheduler
) -> None:
    case = cases[name]
    engine = start_engine(case.model)
    for strength in (1.0, 0.65):
        given = source(SIZE, strength=strength)
        expected = stock_latents(case.stock, kind, given, seed=42)

        def wanted(given: Source = given) -> RenderRequest:
            return request_of(case.model, kind, given, seed=42)

        alone = wanted()
        await render(engine, alone)
        assert distance(alone, expected) <= TOLERANCE
        assert alone.total_steps == alone.steps_done == int(STEPS * strength)
    among = await among_strangers(engine, wanted, case.model)
    assert torch.equal(alone.latents, among.latents)


@pytest.fixture(scope="module")
def whole(model: LoadedModel, stock: Any, sdxl_model: LoadedModel, sdxl_stock: Any) -> dict[str, Case]:
    """Return the models that start from whole pictures, by kind."""
    return {
        "sd15": Case(model, pipeline("StableDiffusionImg2ImgPipeline", stock, model)),
        "sdxl": Case(sdxl_model, pipeline("StableDiffusionXLImg2ImgPipeline", sdxl_stock, sdxl_model)),
    }


@pytest.mark.parametrize(("name", "kind"), pairs_of("sd15", "sdxl"))
async def test_a_picture_that_starts_from_another_equals_the_stock_pipelines(
    start_engine: StartEngine, whole: dict[str, Case], name: str, kind: Scheduler
) -> None:
    case = whole[name]
    given = source(SIZE, masked=False, strength=1.0 if kind is Scheduler.PNDM else 0.65)
    request = request_of(case.model, kind, given, seed=3)
    await render(start_engine(case.model), request)
    assert distance(request, stock_latents(case.stock, kind, given, seed=3)) <= TOLERANCE
    assert request.known is None


async def test_masked_pictures_and_pictures_from_noise_share_the_calls_of_a_unet_with_four_channels(
    start_engine: StartEngine, model: LoadedModel
) -> None:
    engine = start_engine(model)
    masked = engine.submit(request_for(model, size=SIZE, steps=6, source=source(SIZE), scheduler=Scheduler.DDIM))
    plain = engine.submit(request_for(model, size=SIZE, steps=6, scheduler=Scheduler.DDIM))
    assert await result(masked) is not None
    assert await result(plain) is not None
    assert engine.counters.steps == 12
    assert engine.counters.calls < 12


def test_a_strength_that_leaves_no_step_is_refused_with_the_steps_that_it_needs(model: LoadedModel) -> None:
    with pytest.raises(InvalidRequest) as refused:
        request_for(model, size=SIZE, steps=4, source=source(SIZE, strength=0.2))
    (problem,) = refused.value.errors
    assert (problem.field, problem.message) == ("strength", "needs at least 5 steps at this strength")


def test_a_sources_digest_is_that_of_all_of_it() -> None:
    given = source(SIZE)
    same = Source(given.pixels.copy(), given.mask, given.strength)
    assert given.sha256 == same.sha256
    others = {
        Source(given.pixels[::-1], given.mask, 1.0).sha256,
        Source(given.pixels, None, 1.0).sha256,
        Source(given.pixels, ~given.mask if given.mask is not None else None, 1.0).sha256,
        Source(given.pixels, given.mask, 0.5).sha256,
    }
    assert len(others | {given.sha256}) == 5
