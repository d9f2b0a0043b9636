"""An edit between two calls: it goes on from a snapshot, shares calls with others, and says how far it is."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from services.diffusion.editing.phases import MAPS_PER_CALL, NUM_MAPS, FindMask, Invert, Resample
from services.diffusion.editing.request import EditRequest
from services.diffusion.engine import Engine
from services.diffusion.handles import Finished, Preview, Progress
from services.diffusion.loading import LoadedModel
from services.diffusion.pictures import Edit
from services.diffusion.snapshots import fingerprint, pack, resume, take, unpack
from services.diffusion.sources import Mask
from tests.services.diffusion.calls import call
from tests.services.diffusion.editing.requests import SIZE, edit_request, finished, onesided
from tests.services.diffusion.sources import oval

STEPS = 2


@pytest.mark.parametrize("keeps_unmasked", [False, True])
@pytest.mark.parametrize("mask", [None, oval(*SIZE)], ids=["mask found", "mask given"])
def test_an_edit_goes_on_behind_each_call_of_each_phase(
    model: LoadedModel, mask: Mask | None, keeps_unmasked: bool
) -> None:
    def fresh() -> EditRequest:
        return edit_request(model, steps=STEPS, mask=mask, keeps_unmasked=keeps_unmasked)

    mark = fingerprint(fresh().picture, model)
    whole, kept, phases = fresh(), [], set()
    with torch.inference_mode():
        while whole.calls_done < whole.calls:
            call(whole, model)
            kept.append(pack(take(whole), mark))
            phases.add(type(whole.phase))
    assert phases >= {Invert, Resample} | ({FindMask} if mask is None else set())
    for calls_done, data in enumerate(kept, start=1):
        again = fresh()
        resume(again, unpack(data, mark))
        assert again.calls_done == calls_done
        finished(again, model)
        assert torch.equal(again.latents, whole.latents)
        assert np.array_equal(again.mask_pixels(), whole.mask_pixels())


async def test_its_calls_and_rows_are_counted_and_its_progress_told(engine: Engine, model: LoadedModel) -> None:
    request = edit_request(model, steps=4, previews=2)
    told: list[Progress] = []
    shown: list[Preview] = []
    async for event in engine.submit(request).events():
        if isinstance(event, Progress):
            told.append(event)
        if isinstance(event, Preview):
            shown.append(event)
        if isinstance(event, Finished):
            assert event.pixels.shape == (*SIZE[::-1], 3)
    total = NUM_MAPS + 2 * 4
    assert [progress.total_steps for progress in told] == [total] * len(told)
    assert told[-1].step == total
    assert engine.counters.calls == NUM_MAPS // MAPS_PER_CALL + 2 * 4
    assert engine.counters.rows == 2 * NUM_MAPS + 4 * 4
    assert all(preview.progress.step > NUM_MAPS + 4 for preview in shown), "noise is not worth a look"


def test_all_that_decides_an_edit_is_in_its_fingerprint(model: LoadedModel) -> None:
    picture = edit_request(model).picture
    others = {
        fingerprint(replace(picture, edit=Edit(0.7, 3.5)), model),
        fingerprint(replace(picture, edit=Edit(0.75, 3.0)), model),
        fingerprint(replace(picture, edit=Edit(0.75, 3.5, keeps_unmasked=False)), model),
        fingerprint(edit_request(model, source="a boat").picture, model),
        fingerprint(edit_request(model, mask=oval(*SIZE)).picture, model),
    }
    assert len(others | {fingerprint(picture, model)}) == 6


def test_the_mask_covers_whole_latents_of_the_picture(model: LoadedModel) -> None:
    leaning = onesided(model)
    request = finished(edit_request(leaning, steps=1, size=(64, 48)), leaning)
    pixels = request.mask_pixels()
    mask = request.findings.mask
    assert mask is not None
    assert pixels.shape == (48, 64)
    assert set(np.unique(pixels)) == {0, 255}
    assert np.array_equal(pixels[::8, ::8] > 0, mask[0, 0].numpy() > 0)
