"""An edit is what LLMGA.md §5.4 says: equal to the plain loops of `reference`, on every kind of checkpoint."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from services.diffusion.editing.request import EditRequest
from services.diffusion.loading import LoadedModel
from services.diffusion.solvers import build_scheduler
from shared.contracts import Scheduler
from tests.services.diffusion.conftest import StartEngine
from tests.services.diffusion.editing import reference
from tests.services.diffusion.editing.requests import SIZE, SOURCE, edit_request, finished, onesided, texts
from tests.services.diffusion.pictures import request_for, result
from tests.services.diffusion.sources import oval

TOLERANCE = 1e-4


def predicting_velocity(model: LoadedModel) -> LoadedModel:
    """Return the model with its UNet's output taken as velocity."""
    return replace(
        model, files=replace(model.files, scheduler={**model.files.scheduler, "prediction_type": "v_prediction"})
    )


def expected(model: LoadedModel, request: EditRequest, **changes: Any) -> reference.Edited:
    """Return what the plain loops make of a request."""
    picture = request.picture
    assert picture.source is not None
    assert picture.edit is not None
    # The schedule is diffusers', and the same for all its schedulers.
    schedule = build_scheduler(Scheduler.DDIM, model.files.scheduler).alphas_cumprod
    settings: dict[str, Any] = {
        "seed": picture.seed,
        "steps": picture.num_inference_steps,
        "skip": 1 - picture.edit.strength,
        "source_scale": picture.edit.source_guidance_scale,
        "target_scale": picture.guidance_scale,
        "keeps_unmasked": picture.edit.keeps_unmasked,
    }
    with torch.inference_mode():
        pixels = picture.source.pixels
        return reference.edit(model, schedule, pixels, texts(model, request), **(settings | changes))


def check(request: EditRequest, wanted: reference.Edited) -> None:
    """Check a finished request against the plain loops."""
    mask = request.findings.mask
    assert mask is not None
    assert torch.equal(mask[0, 0], wanted.mask)
    distance = float((request.latents[0] - wanted.latents).abs().max())
    assert distance <= TOLERANCE, distance


@pytest.mark.parametrize("keeps_unmasked", [False, True], ids=["as released", "keeps"])
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sdxl"])
async def test_an_edit_among_strangers_equals_the_plain_loops(
    start_engine: StartEngine, model: LoadedModel, sdxl_model: LoadedModel, kind: str, keeps_unmasked: bool
) -> None:
    used = {"epsilon": model, "v_prediction": predicting_velocity(model), "sdxl": sdxl_model}[kind]
    used = onesided(used)
    engine = start_engine(used)
    request = edit_request(used, keeps_unmasked=keeps_unmasked)
    wanted = expected(used, request)
    assert 0 < wanted.mask.mean() < 1, "or nothing is checked"
    strangers = [engine.submit(request_for(used, size=SIZE, seed=seed, steps=4 + 3 * seed)) for seed in range(3)]
    assert await result(engine.submit(request)) is not None
    for stranger in strangers:
        assert await result(stranger) is not None
    check(request, wanted)
    alone = finished(edit_request(used, keeps_unmasked=keeps_unmasked), used)
    assert torch.equal(alone.latents, request.latents), "to the last bit"


def test_the_client_s_own_mask_takes_the_place_of_the_one_that_is_found(model: LoadedModel) -> None:
    white = oval(*SIZE)
    request = finished(edit_request(model, mask=white, steps=3, strength=0.5, keeps_unmasked=False), model)
    given = torch.from_numpy(np.ascontiguousarray(white[::8, ::8])).float()
    check(request, expected(model, request, mask=given))
    assert request.calls == 6


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_the_source_s_own_caption_brings_the_picture_back(model: LoadedModel, kind: str) -> None:
    used = model if kind == "epsilon" else predicting_velocity(model)
    everywhere = np.ones(SIZE[::-1], np.bool_)
    request = edit_request(used, SOURCE, SOURCE, guidance=3.5, source_guidance=3.5, mask=everywhere, steps=12)
    finished(request, used)
    start = expected(used, request, steps=1, mask=torch.ones(())).start
    assert float((request.latents[0] - start).abs().max()) <= 1e-3


def test_what_the_mask_leaves_out_is_the_encoded_picture_to_the_last_bit(model: LoadedModel) -> None:
    white = oval(*SIZE)
    outside = torch.from_numpy(~np.ascontiguousarray(white[::8, ::8]))
    kept, drifted = (
        finished(edit_request(model, mask=white, steps=4, keeps_unmasked=keeps), model) for keeps in (True, False)
    )
    start = expected(model, kept, steps=1, mask=torch.ones(())).start
    assert torch.equal(kept.latents[0][:, outside], start[:, outside])
    assert float((drifted.latents[0] - start)[:, outside].abs().max()) > 0.01


@pytest.mark.deep
@pytest.mark.timeout(1800)
def test_fifty_steps_equal_the_plain_loops(model: LoadedModel, sdxl_model: LoadedModel) -> None:
    for used in (model, predicting_velocity(model), sdxl_model):
        leaning = onesided(used)
        for keeps_unmasked in (False, True):
            request = finished(edit_request(leaning, steps=50, keeps_unmasked=keeps_unmasked), leaning)
            check(request, expected(leaning, request))
