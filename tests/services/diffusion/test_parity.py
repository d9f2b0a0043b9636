"""Correct means: equal to the stock pipeline of diffusers with the same checkpoint, seed and settings."""

from dataclasses import replace
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from services.diffusion.engine import Engine
from services.diffusion.libraries import StableDiffusionPipeline, UNet2DConditionModel
from services.diffusion.loading import LoadedModel
from services.diffusion.requests import RenderRequest, guidance_embedding
from services.diffusion.solvers import default_scheduler
from shared.contracts import Scheduler
from tests.services.diffusion.conftest import StartEngine
from tests.services.diffusion.pictures import render, request_for
from tests.services.diffusion.stock import (
    STOCK,
    TOLERANCE,
    check_alone_and_among_strangers,
    distance,
    guidance_of,
    reference,
)


@pytest.mark.parametrize("kind", list(Scheduler))
async def test_latents_equal_the_stock_pipelines_alone_and_among_seven_strangers(
    engine: Engine, model: LoadedModel, stock: Any, kind: Scheduler
) -> None:
    prompt, negative = "a snowman at night", "a red circle"
    expected = reference(
        stock,
        kind,
        "latent",
        prompt=prompt,
        negative_prompt=negative,
        num_inference_steps=7,
        guidance_scale=guidance_of(kind),
        width=128,
        height=128,
        seed=42,
    )

    def wanted() -> RenderRequest:
        return request_for(model, prompt, negative, seed=42, steps=7, guidance=guidance_of(kind), scheduler=kind)

    await check_alone_and_among_strangers(engine, wanted, expected, [model])


@pytest.mark.parametrize("guidance", [0.0, 1.0])
async def test_an_unguided_picture_takes_one_row_and_equals_the_stock_pipelines(
    engine: Engine, model: LoadedModel, stock: Any, guidance: float
) -> None:
    expected = reference(
        stock,
        Scheduler.EULER_ANCESTRAL,
        "latent",
        prompt="a boat",
        num_inference_steps=5,
        guidance_scale=guidance,
        seed=3,
    )
    request = request_for(model, "a boat", seed=3, steps=5, guidance=guidance, scheduler=Scheduler.EULER_ANCESTRAL)
    await render(engine, request)
    assert distance(request, expected) <= TOLERANCE
    assert engine.counters.rows == engine.counters.calls == 5


async def test_other_sizes_and_a_single_step_equal_the_stock_pipelines(
    engine: Engine, model: LoadedModel, stock: Any
) -> None:
    for size, steps in (((72, 136), 3), ((64, 64), 1)):
        expected = reference(
            stock,
            Scheduler.DPMPP_2M,
            "latent",
            prompt="",
            negative_prompt="",
            num_inference_steps=steps,
            width=size[0],
            height=size[1],
            seed=1,
        )
        request = request_for(model, "", seed=1, steps=steps, size=size, scheduler=Scheduler.DPMPP_2M)
        await render(engine, request)
        assert distance(request, expected) <= TOLERANCE


async def test_pixels_equal_the_stock_pipelines(engine: Engine, model: LoadedModel, stock: Any) -> None:
    image = reference(stock, Scheduler.PNDM, "pil", prompt="a fish", negative_prompt="", num_inference_steps=6, seed=9)
    pixels = await render(engine, request_for(model, "a fish", seed=9, steps=6))
    assert np.abs(np.asarray(image, dtype=int) - pixels.astype(int)).max() <= 1


async def test_a_prompt_longer_than_clip_is_cut_as_the_stock_pipeline_cuts_it(
    engine: Engine, model: LoadedModel, stock: Any
) -> None:
    prompt = "a red circle and a blue square " * 20
    expected = reference(
        stock, Scheduler.DDIM, "latent", prompt=prompt, negative_prompt="", num_inference_steps=3, seed=5
    )
    request = request_for(model, prompt, seed=5, steps=3, scheduler=Scheduler.DDIM)
    await render(engine, request)
    assert distance(request, expected) <= TOLERANCE
    tokenized = request.picture.prompts.prompt
    assert tokenized.truncated == tokenized.tokens - 75 > 0


async def test_v_prediction_equals_the_stock_pipelines(
    start_engine: StartEngine, model: LoadedModel, stock: Any
) -> None:
    config = {**model.files.scheduler, "prediction_type": "v_prediction"}
    other = replace(model, files=replace(model.files, scheduler=config))
    engine = start_engine(other)
    stock.scheduler = diffusers.EulerDiscreteScheduler.from_config(config)
    generator = torch.Generator().manual_seed(2)
    expected = stock("a car", num_inference_steps=4, generator=generator, output_type="latent").images[0]
    request = request_for(other, "a car", seed=2, steps=4, scheduler=Scheduler.EULER)
    await render(engine, request)
    assert distance(request, expected) <= TOLERANCE


async def test_a_guidance_distilled_unet_equals_the_stock_pipelines_with_one_row(
    start_engine: StartEngine, model: LoadedModel, stock: Any
) -> None:
    config = {**model.unet.config, "time_cond_proj_dim": 32}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = UNet2DConditionModel.from_config(config).eval()
    distilled = replace(model, unet=unet, files=replace(model.files, unet={**config}))
    parts = {**stock.components, "unet": unet, "scheduler": diffusers.LCMScheduler.from_config(model.files.scheduler)}
    pipeline = StableDiffusionPipeline(**parts, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    expected = pipeline(
        "a tree",
        num_inference_steps=4,
        guidance_scale=8.0,
        generator=torch.Generator().manual_seed(6),
        output_type="latent",
    ).images[0]
    engine = start_engine(distilled)
    request = request_for(distilled, "a tree", seed=6, steps=4, guidance=8.0, scheduler=Scheduler.LCM)
    await render(engine, request)
    assert distance(request, expected) <= TOLERANCE
    assert engine.counters.rows == 4
    stock_embedding = pipeline.get_guidance_scale_embedding(torch.tensor([7.0]), embedding_dim=32)
    assert torch.allclose(guidance_embedding(8.0, 32), stock_embedding)


def test_the_default_scheduler_is_the_one_that_the_checkpoint_names() -> None:
    for kind, (name, options) in STOCK.items():
        assert default_scheduler({"_class_name": name, **options}) is kind
    assert default_scheduler({"_class_name": "KDPM2DiscreteScheduler"}) is Scheduler.PNDM


def embedding_without_last_layers(stock: Any, prompt: str, clip_skip: int) -> torch.Tensor:
    """Return what diffusers' `clip_skip` means; its own code looks for the final norm where transformers 5 has none."""
    ids = stock.tokenizer(prompt, padding="max_length", max_length=77, return_tensors="pt").input_ids
    with torch.inference_mode():
        states = stock.text_encoder(ids, output_hidden_states=True).hidden_states
        embedding: torch.Tensor = stock.text_encoder.final_layer_norm(states[-(clip_skip + 1)])
    return embedding


@pytest.mark.parametrize(("rescale", "clip_skip"), [(0.7, 0), (0.0, 1), (1.0, 2)])
async def test_rescaled_guidance_and_skipped_layers_equal_the_stock_pipelines(
    engine: Engine, model: LoadedModel, stock: Any, rescale: float, clip_skip: int
) -> None:
    expected = reference(
        stock,
        Scheduler.DPMPP_2M,
        "latent",
        prompt_embeds=embedding_without_last_layers(stock, "a boat", clip_skip),
        negative_prompt_embeds=embedding_without_last_layers(stock, "rain", clip_skip),
        num_inference_steps=5,
        guidance_scale=4.0,
        guidance_rescale=rescale,
        seed=3,
    )

    def wanted(**settings: Any) -> RenderRequest:
        return request_for(
            model, "a boat", "rain", seed=3, steps=5, guidance=4.0, scheduler=Scheduler.DPMPP_2M, **settings
        )

    request, plain = wanted(guidance_rescale=rescale, clip_skip=clip_skip), wanted()
    await render(engine, request)
    assert distance(request, expected) <= TOLERANCE
    await render(engine, plain)
    assert distance(plain, expected) > 100 * TOLERANCE


async def test_steps_outside_the_guidance_interval_take_one_row_and_are_those_of_guidance_one(
    engine: Engine, model: LoadedModel, stock: Any
) -> None:
    def guidance_at(pipeline: Any, step: int, timestep: int, tensors: dict[str, Any]) -> dict[str, Any]:
        # The stock pipeline applies what is set here from the next step on: unguided 0-1, guided 2-5, unguided 6-7.
        pipeline._guidance_scale = 6.0 if 1 <= step < 5 else 1.0 + 1e-9
        return tensors

    expected = reference(
        stock,
        Scheduler.DDIM,
        "latent",
        prompt="a boat",
        negative_prompt="rain",
        num_inference_steps=8,
        guidance_scale=1.0 + 1e-9,
        seed=3,
        callback_on_step_end=guidance_at,
    )
    request = request_for(
        model, "a boat", "rain", seed=3, steps=8, guidance=6.0, scheduler=Scheduler.DDIM, guidance_interval=(0.25, 0.75)
    )
    await render(engine, request)
    assert distance(request, expected) <= TOLERANCE
    assert engine.counters.rows == 4 * 1 + 4 * 2
