"""Joining, leaving, order, memory and death, seen from the event loop."""

import asyncio
import gc
import threading
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from services.diffusion.batching import Buckets
from services.diffusion.engine import Engine, EngineClosed, EngineFull
from services.diffusion.faults import DeviceLost
from services.diffusion.handles import Bell, Finished, Handle, Progress
from services.diffusion.loading import LoadedModel
from services.diffusion.stages import decode_latents, encode_prompts
from services.diffusion.unet import predict
from shared.contracts import Lane, Scheduler
from shared.contracts.generation import PromptEncoding
from shared.errors import InternalError, OutOfMemory, RenderFailed
from tests.services.diffusion.conftest import StartEngine
from tests.services.diffusion.editing.requests import edit_request
from tests.services.diffusion.instruments import WAIT_S, held, watched
from tests.services.diffusion.pictures import png, render, request_for, result, results
from tests.services.diffusion.sources import source


async def test_progress_is_told_in_the_steps_that_were_asked_for(engine: Engine, model: LoadedModel) -> None:
    for kind, calls in ((Scheduler.PNDM, 6), (Scheduler.HEUN, 9), (Scheduler.DDIM, 5)):
        before = engine.counters.calls
        steps = []
        async for event in engine.submit(request_for(model, steps=5, scheduler=kind)).events():
            if isinstance(event, Progress):
                assert event.total_steps == 5
                steps.append(event.step)
        assert steps == sorted(steps)
        assert steps[-1] == 5
        assert engine.counters.calls - before == calls


async def test_a_follower_that_lags_sees_the_latest_progress_only() -> None:
    bell = Bell()
    handle = Handle(lambda: None, bell)
    for step in range(1, 6):
        handle.post(Progress(step, 6))
    bell.ring()
    stream = handle.events()
    assert await anext(stream) == Progress(5, 6)
    handle.post(Progress(6, 6))
    handle.end(None)
    handle.end(InternalError("a second end changes nothing"))
    bell.ring()
    assert [event async for event in stream] == [Progress(6, 6)]


async def test_a_request_joins_the_next_call(start_engine: StartEngine, model: LoadedModel) -> None:
    gated, unet = held(model)
    engine = start_engine(gated)
    first = engine.submit(request_for(gated, steps=20, scheduler=Scheduler.DDIM))
    await asyncio.to_thread(unet.wait_for_call)
    second = engine.submit(request_for(gated, "a boat", steps=3, scheduler=Scheduler.EULER))
    unet.allow()
    await asyncio.to_thread(unet.wait_for_call)
    assert [int((call != 0).sum()) for call in unet.calls] == [2, 4]
    unet.allow(100)
    assert await result(second) is not None
    assert await result(first) is not None
    assert engine.counters.calls == 20


async def test_a_request_joins_the_next_call_where_calls_leave_some_out(
    start_engine: StartEngine, model: LoadedModel
) -> None:
    gated, unet = held(model)
    slow_when_large = Buckets([2, 4, 8], call_s={2: 1.0, 4: 1.1, 8: 8.0})
    engine = start_engine(replace(gated, buckets=slow_when_large))
    crowd = [engine.submit(request_for(gated, steps=6, scheduler=Scheduler.DDIM, seed=seed)) for seed in range(3)]
    unet.allow(3)
    for _ in range(4):  # a text is encoded before each of the first
        await asyncio.to_thread(unet.wait_for_call)
    newcomer = engine.submit(request_for(gated, "a boat", steps=1, scheduler=Scheduler.DDIM))
    unet.allow()
    await asyncio.to_thread(unet.wait_for_call)
    unet.allow()
    assert await result(newcomer) is not None
    unet.allow(100)
    assert all(isinstance(picture, np.ndarray) for picture in await results(crowd))
    assert {len(call) for call in unet.calls[2:5]} == {4}  # of the eight rows that wait in the end


async def test_between_two_calls_one_text_is_encoded_and_one_picture_decoded(
    start_engine: StartEngine, model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace: list[str] = []

    def traced(what: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any) -> Any:
            trace.append(what)
            return work(*arguments)

        return wrapped

    room = "services.diffusion.engine"
    monkeypatch.setattr(f"{room}.SIDE_SHARE", 0.0)  # no time but for what is done in any case
    monkeypatch.setattr(f"{room}.encode_prompts", traced("text", encode_prompts))
    monkeypatch.setattr(f"{room}.decode_latents", traced("picture", decode_latents))
    monkeypatch.setattr(f"{room}.predict", traced("call", predict))
    gated, unet = held(model)
    engine = start_engine(gated)
    handles = [engine.submit(request_for(gated, steps=2, scheduler=Scheduler.DDIM, seed=seed)) for seed in range(6)]
    unet.allow(100)
    assert all(isinstance(done, np.ndarray) for done in await results(handles))
    begin, end = ["text", "call"] * 2, ["picture", "call", "picture"]
    assert trace == [*begin, *["text", "picture", "call"] * 4, *end]


async def test_a_canceled_request_is_in_no_later_call_and_its_memory_is_free(
    start_engine: StartEngine, model: LoadedModel
) -> None:
    gated, unet = held(model)
    engine = start_engine(gated)
    request = request_for(gated, "a boat", steps=20, scheduler=Scheduler.DDIM)
    canceled = engine.submit(request)
    other = engine.submit(request_for(gated, steps=4, scheduler=Scheduler.DDIM))
    await asyncio.to_thread(unet.wait_for_call)
    unet.allow(2)
    await asyncio.to_thread(unet.wait_for_call)
    await asyncio.to_thread(unet.wait_for_call)
    canceled.cancel()
    unet.allow()
    await asyncio.to_thread(unet.wait_for_call)
    joined, left = unet.calls[2], unet.calls[3]
    assert int((joined != 0).sum()) == 4
    assert int((left != 0).sum()) == 2, "canceled during the third call, gone from the fourth"
    assert await result(canceled) is None
    assert engine.held == 1

    memory = weakref.ref(request.latents)
    del request, canceled
    gc.collect()
    assert memory() is None
    unet.allow(100)
    assert await result(other) is not None
    assert engine.held == 0


async def test_an_interactive_request_overtakes_twenty_batch_requests(
    start_engine: StartEngine, model: LoadedModel
) -> None:
    gated, unet = held(model)
    engine = start_engine(gated)
    crowd = [
        engine.submit(request_for(gated, seed=seed, steps=2, lane=Lane.BATCH, scheduler=Scheduler.DDIM))
        for seed in range(20)
    ]
    await asyncio.to_thread(unet.wait_for_call)
    urgent = engine.submit(request_for(gated, "now", size=(64, 64), seed=99, steps=1, scheduler=Scheduler.DDIM))
    unet.allow()
    await asyncio.to_thread(unet.wait_for_call)
    unet.allow()  # of the urgent one, which has a size of its own
    assert await result(urgent) is not None
    assert engine.counters.calls <= 3
    unet.allow(100)
    assert all(isinstance(done, np.ndarray) for done in await results(crowd))


async def test_text_is_encoded_once_and_piece_by_piece(start_engine: StartEngine, model: LoadedModel) -> None:
    from services.diffusion.conditioning.encoder import PromptEncoder

    fresh = replace(model, encoder=PromptEncoder(model.encoder._text_encoder, model.device, model.dtype))
    engine = start_engine(fresh)
    long: dict[str, Any] = {"encoding": PromptEncoding.LLMGA, "steps": 1}
    await render(engine, request_for(fresh, "a red circle " * 40, "", **long))
    assert fresh.encoder.calls == 3, "two pieces of the prompt, and the empty piece once"
    await render(engine, request_for(fresh, "(a red circle:1.3) " + "a red circle " * 39, "", seed=7, **long))
    assert fresh.encoder.calls == 3, "other weights over the same pieces"
    await render(engine, request_for(fresh, "a blue circle", "", **long))
    assert fresh.encoder.calls == 4


async def test_the_engine_is_bounded_and_closes(start_engine: StartEngine, model: LoadedModel) -> None:
    gated, unet = held(model)
    engine = start_engine(gated, max_pictures=2)
    handles = [engine.submit(request_for(gated, steps=9)) for _ in range(2)]
    with pytest.raises(EngineFull):
        engine.submit(request_for(gated))
    await asyncio.to_thread(unet.wait_for_call)
    closing = asyncio.create_task(asyncio.to_thread(engine.close))
    unet.allow(100)
    await closing
    assert await results(handles) == [None, None]
    with pytest.raises(EngineClosed):
        engine.submit(request_for(gated))


async def test_out_of_memory_makes_calls_smaller_and_loses_nobody(
    start_engine: StartEngine, model: LoadedModel
) -> None:
    sizes: list[int] = []

    def look(sample: torch.Tensor, _: torch.Tensor) -> None:
        sizes.append(len(sample))
        if len(sample) > 4:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried")

    engine = start_engine(model)
    alone = png(await render(engine, request_for(model, seed=3, steps=3)))
    engine.close()
    engine = start_engine(watched(model, look))
    handles = [engine.submit(request_for(model, seed=seed, steps=3)) for seed in range(6)]
    pictures = [await result(handle) for handle in handles]
    assert all(pixels is not None for pixels in pictures)
    assert pictures[3] is not None
    assert png(pictures[3]) == alone
    assert sum(size > 4 for size in sizes) in {1, 2}, "a call that does not fit is not tried again"
    assert set(sizes[-6:]) <= {2, 4}


async def test_a_request_of_more_rows_than_fit_fails_and_the_others_do_not(
    start_engine: StartEngine, model: LoadedModel
) -> None:
    def look(sample: torch.Tensor, _: torch.Tensor) -> None:
        if len(sample) > 2:
            raise MemoryError

    engine = start_engine(watched(model, look))
    first = [engine.submit(request_for(model, seed=seed, steps=3)) for seed in range(2)]
    assert all(isinstance(picture, np.ndarray) for picture in await results(first))
    edit = engine.submit(edit_request(model))  # four rows, to look for its mask
    last = engine.submit(request_for(model, steps=3))
    outcomes = await results([edit, last])
    assert isinstance(outcomes[0], OutOfMemory)
    assert isinstance(outcomes[1], np.ndarray)


async def test_what_fits_in_no_call_fails_with_out_of_memory(start_engine: StartEngine, model: LoadedModel) -> None:
    def look(sample: torch.Tensor, _: torch.Tensor) -> None:
        if sample.shape[-1] == 16:
            raise MemoryError

    engine = start_engine(watched(model, look))
    small = engine.submit(request_for(model, size=(64, 64)))
    with pytest.raises(OutOfMemory):
        await render(engine, request_for(model))
    assert await result(small) is not None


class _TightVAE:
    """A decoder without memory for more than 8 latents a side at once."""

    def __init__(self, vae: Any) -> None:
        self.__dict__["_vae"] = vae

    def __getattr__(self, name: str) -> Any:
        return getattr(self._vae, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._vae, name, value)

    def decode(self, latents: torch.Tensor, **options: Any) -> Any:
        if not self._vae.use_tiling:
            raise MemoryError
        assert self._vae.tile_latent_min_size == 8
        return self._vae.decode(latents, **options)

    def encode(self, pixels: torch.Tensor, **options: Any) -> Any:
        if not self._vae.use_tiling:
            raise MemoryError
        assert self._vae.tile_sample_min_size == 64
        return self._vae.encode(pixels, **options)


async def test_a_decoder_without_memory_decodes_in_tiles(start_engine: StartEngine, model: LoadedModel) -> None:
    whole = await render(start_engine(model), request_for(model))
    tiled = await render(start_engine(replace(model, vae=_TightVAE(model.vae))), request_for(model))
    assert tiled.shape == whole.shape
    assert not model.vae.use_tiling
    assert abs(tiled.astype(int) - whole.astype(int)).mean() < 30, "the same picture, with seams"


async def test_an_encoder_without_memory_encodes_in_tiles_and_draws_the_same_noise(
    start_engine: StartEngine, model: LoadedModel
) -> None:
    given = source((128, 128), masked=False, strength=0.5)
    whole = request_for(model, source=given)
    await render(start_engine(model), whole)
    tiled = request_for(model, source=given)
    await render(start_engine(replace(model, vae=_TightVAE(model.vae))), tiled)
    assert torch.equal(whole.generator.get_state(), tiled.generator.get_state())
    assert not model.vae.use_tiling


class _BlindVAE(_TightVAE):
    """An encoder that makes nothing of a picture, and a decoder as it was."""

    def decode(self, latents: torch.Tensor, **options: Any) -> Any:
        return self._vae.decode(latents, **options)

    def encode(self, pixels: torch.Tensor, **options: Any) -> Any:
        (distribution,) = self._vae.encode(pixels, **options)
        distribution.mean *= torch.nan
        return (distribution,)


async def test_a_picture_that_cannot_be_encoded_fails_alone(start_engine: StartEngine, model: LoadedModel) -> None:
    engine = start_engine(replace(model, vae=_BlindVAE(model.vae)))
    requests = [request_for(model, size=(64, 64), source=given) for given in (source((64, 64)), None)]
    refused, made = await results([engine.submit(request) for request in requests])
    assert isinstance(refused, RenderFailed)
    assert isinstance(made, np.ndarray)


async def test_a_lost_device_ends_the_engine(start_engine: StartEngine, model: LoadedModel) -> None:
    submitted = threading.Event()

    def look(_: torch.Tensor, __: torch.Tensor) -> None:
        assert submitted.wait(WAIT_S)
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    deaths: list[BaseException] = []
    engine = start_engine(watched(model, look), deaths_to=deaths)
    handles = [engine.submit(request_for(model, seed=seed)) for seed in range(3)]
    submitted.set()
    outcomes = await results(handles)
    assert all(isinstance(outcome, InternalError) for outcome in outcomes)
    assert [type(death) for death in deaths] == [DeviceLost]
    engine.close()
    assert not engine.is_alive
    with pytest.raises(EngineClosed):
        engine.submit(request_for(model))


async def test_where_buckets_disagree_the_deterministic_class_keeps_to_its_own(
    start_engine: StartEngine, model: LoadedModel
) -> None:
    sizes: list[int] = []
    watching = watched(model, lambda sample, _: sizes.append(len(sample)))
    engine = start_engine(replace(watching, buckets=Buckets([4, 8, 16], stable=[8])))
    await render(engine, request_for(model, steps=2, scheduler=Scheduler.DDIM))
    assert sizes == [8, 8]
    sizes.clear()
    await render(engine, request_for(model, steps=2, scheduler=Scheduler.DDIM, deterministic=False))
    assert sizes == [4, 4]


async def test_events_end_with_the_picture(engine: Engine, model: LoadedModel) -> None:
    events = [event async for event in engine.submit(request_for(model, size=(96, 64))).events()]
    assert isinstance(events[-1], Finished)
    assert events[-1].pixels.shape == (64, 96, 3)


async def test_followers_are_woken_together_once_per_call(
    engine: Engine, model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = asyncio.get_running_loop()
    wake, wakes = loop.call_soon_threadsafe, 0

    def counted(*arguments: Any, **options: Any) -> Any:
        nonlocal wakes
        wakes += threading.current_thread().name == "llmga-device"
        return wake(*arguments, **options)

    monkeypatch.setattr(loop, "call_soon_threadsafe", counted)
    requests = [request_for(model, size=(64, 64), seed=seed, steps=20, scheduler=Scheduler.DDIM) for seed in range(8)]
    pictures = await results([engine.submit(request) for request in requests])
    assert all(isinstance(pixels, np.ndarray) for pixels in pictures)
    assert engine.counters.steps == 8 * 20
    assert wakes <= engine.counters.calls + len(requests)
