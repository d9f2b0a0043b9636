"""A picture is the same bytes whoever shares its calls, and nobody else's failure reaches it."""

import asyncio
import random
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from services.diffusion.batching import Buckets
from services.diffusion.engine import Engine
from services.diffusion.loading import LoadedModel
from services.diffusion.profile import profile
from services.diffusion.requests import RenderRequest
from services.diffusion.stages import Pixels, decode_latents
from shared.contracts import Scheduler
from shared.contracts.generation import PromptEncoding
from shared.errors import RenderFailed
from tests.services.diffusion.conftest import CANDIDATES, StartEngine
from tests.services.diffusion.instruments import refusing, watched
from tests.services.diffusion.pictures import png, random_settings, render, request_for, result, results

NAN_PROMPT = "(" * 7_900 + "x"  # weights multiply beyond every number


@pytest.fixture(scope="module")
def model(model: LoadedModel) -> Iterator[LoadedModel]:
    """Yield the run's checkpoint with times by which a call of 8 that leaves some out is better than one of 16.

    Torch has two threads meanwhile, whatever else has one.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    buckets = profile(model, CANDIDATES)
    call_s = {size: 1 + size / 8 for size in buckets.sizes}
    yield replace(model, buckets=Buckets(buckets.sizes, buckets.stable, call_s))
    torch.set_num_threads(before)


def not_a_number(model: LoadedModel, seed: int, steps: int = 9) -> RenderRequest:
    """Return a request whose embeddings are NaN."""
    return request_for(model, NAN_PROMPT, encoding=PromptEncoding.LLMGA, seed=seed, steps=steps)


FEW = [(mix, 9) for mix in range(16)]
MANY = [pytest.param(mix, 60, marks=pytest.mark.deep) for mix in range(100, 300)]


@pytest.mark.parametrize(("mix", "max_steps"), [*FEW, *MANY])
async def test_bytes_are_equal_alone_and_in_random_company(
    engine: Engine, model: LoadedModel, mix: int, max_steps: int
) -> None:
    rng = random.Random(mix)
    wanted = random_settings(rng, max_steps=max_steps) | {"deterministic": True}
    alone = png(await render(engine, request_for(model, **wanted)))

    handles = []
    for seed in range(rng.randint(3, 9)):
        stranger = (
            not_a_number(model, seed)
            if rng.random() < 0.15
            else request_for(model, **random_settings(rng, max_steps=max_steps))
        )
        handles.append(engine.submit(stranger))
    task = asyncio.create_task(render(engine, request_for(model, **wanted)))
    await asyncio.sleep(rng.random() / 10)
    for handle in handles:
        if rng.random() < 0.2:
            handle.cancel()
    assert png(await task) == alone
    await results(handles)


async def test_a_nan_stays_with_its_request(engine: Engine, model: LoadedModel) -> None:
    alone = png(await render(engine, request_for(model, encoding=PromptEncoding.LLMGA, seed=1)))
    bad_request = not_a_number(model, 0)
    bad = engine.submit(bad_request)
    good = engine.submit(request_for(model, "x " * 200, encoding=PromptEncoding.LLMGA, seed=1, steps=6))
    again = engine.submit(request_for(model, encoding=PromptEncoding.LLMGA, seed=1))
    with pytest.raises(RenderFailed) as caught:
        await result(bad)
    assert "not a number" in caught.value.detail
    assert bad_request.steps_done == 0, "it does not go on for nothing"
    assert await result(good) is not None
    pixels = await result(again)
    assert pixels is not None
    assert png(pixels) == alone


async def test_a_call_that_fails_is_repeated_request_by_request(start_engine: StartEngine, model: LoadedModel) -> None:
    engine = start_engine(refusing(model, "break it"))
    alone = png(await render(engine, request_for(model, seed=4, steps=5)))
    bad = engine.submit(request_for(model, "break it", steps=9))
    neighbours = [
        engine.submit(request_for(model, seed=4, steps=5)),
        engine.submit(request_for(model, "a boat", seed=5, steps=7, scheduler=Scheduler.HEUN)),
    ]
    with pytest.raises(RenderFailed) as caught:
        await result(bad)
    assert "breaks the model" not in caught.value.detail
    first, second = [await result(neighbour) for neighbour in neighbours]
    assert first is not None
    assert second is not None
    assert png(first) == alone


async def test_a_solver_that_fails_ends_its_own_request_only(engine: Engine, model: LoadedModel) -> None:
    alone = png(await render(engine, request_for(model, seed=4, steps=5)))
    broken = request_for(model, "a boat", steps=9)
    broken.solver.timesteps = broken.solver.timesteps[:3]  # the scheduler knows nine
    broken.solver._scheduler.counter = 99  # PNDM's place in its warm-up
    broken.solver._scheduler.ets = [None] * 4
    bad, good = engine.submit(broken), engine.submit(request_for(model, seed=4, steps=5))
    with pytest.raises(RenderFailed):
        await result(bad)
    pixels = await result(good)
    assert pixels is not None
    assert png(pixels) == alone


async def test_a_picture_that_decodes_to_nan_fails_alone(
    engine: Engine, model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoiled = request_for(model, seed=1)

    def decode(latents: torch.Tensor, of: LoadedModel) -> Pixels:
        return decode_latents(latents * torch.nan if latents is spoiled.latents else latents, of)

    monkeypatch.setattr("services.diffusion.engine.decode_latents", decode)
    bad, good = engine.submit(spoiled), engine.submit(request_for(model, seed=2))
    with pytest.raises(RenderFailed) as caught:
        await result(bad)
    assert isinstance(caught.value, RenderFailed)
    assert "not a number" in caught.value.detail
    assert await result(good) is not None


async def test_padding_rows_never_reach_a_solver(start_engine: StartEngine, model: LoadedModel) -> None:
    shapes: list[int] = []

    def look(sample: torch.Tensor, _: torch.Tensor) -> None:
        shapes.append(len(sample))
        assert not sample[1:].any(), "behind the row of the only request there is nothing but zeros"

    engine = start_engine(watched(model, look))
    await render(engine, request_for(model, steps=3, scheduler=Scheduler.DDIM, guidance=1.0))
    assert shapes == [model.buckets.stable[0]] * 3
    assert engine.counters.rows == 3
