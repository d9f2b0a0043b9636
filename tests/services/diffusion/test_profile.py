"""What a worker measures of its device, and announces."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch

from services.diffusion.batching import Buckets
from services.diffusion.execution import Execution
from services.diffusion.library import Shelf
from services.diffusion.loading import LoadedModel
from services.diffusion.profile import answer, profile, served_models
from services.diffusion.vectors import VECTORS, even_out
from shared.contracts import Scheduler
from shared.contracts.generation import PromptEncoding

CANDIDATES = Buckets.up_to(16)


class Skewed:
    """A UNet with other last bits in some buckets, as kernels have that choose their order by the shape."""

    def __init__(self, unet: Any, buckets: set[int], *, by_place: bool = False) -> None:
        self._unet = unet
        self._buckets = buckets
        self._by_place = by_place

    def __call__(self, sample: torch.Tensor, timesteps: torch.Tensor, **options: Any) -> Any:
        (answer,) = self._unet(sample, timesteps, **options)
        if len(sample) in self._buckets:
            skew = torch.arange(len(sample))[:, None, None, None] if self._by_place else 1
            answer = answer * (1 + skew * 2.0**-20)
        return (answer,)


@pytest.mark.skipif(torch.get_num_threads() == 1, reason="with one thread torch takes another way for 1x1 convolutions")
def test_all_buckets_agree_on_this_machine(model: LoadedModel) -> None:
    buckets = profile(model, CANDIDATES)
    assert buckets.sizes == buckets.stable == (4, 8, 16)


@pytest.mark.parametrize("count", [1, 3, VECTORS, VECTORS + 4])
@pytest.mark.parametrize("shape", [(), (5,)])
def test_an_even_layer_gives_what_a_plain_one_gives(count: int, shape: tuple[int, ...]) -> None:
    plain = torch.nn.Linear(6, 4)
    even = torch.nn.Sequential(copy.deepcopy(plain))
    even_out(even)
    given = torch.randn(count, *shape, 6)
    torch.testing.assert_close(even(given), plain(given))


def test_layers_of_vectors_are_always_as_high(model: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = set()
    linear = torch.nn.functional.linear

    def watched(input: torch.Tensor, *more: Any) -> torch.Tensor:
        if input.dim() == 2:
            seen.add(len(input))
        return linear(input, *more)

    monkeypatch.setattr(torch.nn.functional, "linear", watched)
    for bucket in (4, 8):
        answer(model, bucket, 0)
    assert seen == {VECTORS}


def test_a_bucket_that_disagrees_is_kept_from_the_deterministic_class(model: LoadedModel) -> None:
    for skewed, stable in (({4}, (8, 16)), ({16}, (4, 8)), ({4, 8, 16}, (4, 8, 16))):
        buckets = profile(replace(model, unet=Skewed(model.unet, skewed)), CANDIDATES)
        assert buckets.sizes == (4, 8, 16)
        assert buckets.stable == stable


def test_a_bucket_whose_rows_depend_on_their_place_is_kept_from_it_too(model: LoadedModel) -> None:
    buckets = profile(replace(model, unet=Skewed(model.unet, {8, 16}, by_place=True)), CANDIDATES)
    assert buckets.stable == (4,)


def test_a_bucket_that_does_not_fit_is_left_out(model: LoadedModel) -> None:
    def tight(sample: torch.Tensor, timesteps: torch.Tensor, **options: Any) -> Any:
        if len(sample) > 8:
            raise MemoryError
        return model.unet(sample, timesteps, **options)

    assert profile(replace(model, unet=tight), CANDIDATES).sizes == (4, 8)


def test_the_announcement_fills_what_a_request_leaves_open(model: LoadedModel) -> None:
    shelves = {name: Shelf(model.files, model.bytes) for name in ("mini", "other")}
    first, second = served_models(shelves, "other", Execution(model.device, model.dtype))
    assert (first.default, second.default) == (False, True)
    assert first.name == "mini"
    assert first.kind == "sd15"
    assert first.size == "128x128"
    assert first.max_side_px == 256
    assert first.num_inference_steps == 20
    assert first.guidance_scale == 7.5
    assert first.scheduler is Scheduler.PNDM
    assert first.schedulers == list(Scheduler)
    assert first.prompt_encodings == list(PromptEncoding)
    assert first.max_prompt_tokens == {PromptEncoding.LLMGA: 225, PromptEncoding.STOCK: 75}
    assert first.tasks == list(model.files.tasks)
