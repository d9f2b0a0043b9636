"""What a worker measures of its device, and announces."""

import weakref
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch

from services.diffusion.batching import Buckets
from services.diffusion.checkpoints import inspect
from services.diffusion.convolutions import by_onednn
from services.diffusion.execution import Execution
from services.diffusion.libraries import UNet2DConditionModel
from services.diffusion.library import Shelf
from services.diffusion.loading import LoadedModel, load
from services.diffusion.profile import answer, profile, served_models, worthwhile
from shared.contracts import Scheduler
from shared.contracts.generation import PromptEncoding
from training.minis.diffusion import HIDDEN, SAMPLE_SIZE, build_sd15

CANDIDATES = Buckets([4, 8, 16])


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """A UNet whose layers add up hundreds of products, as the published ones' do: kernels split such sums."""
    folder = tmp_path_factory.mktemp("wide")
    build_sd15(folder)
    torch.manual_seed(0)
    options = {"block_out_channels": (56, 112, 224, 224), "norm_num_groups": 8, "attention_head_dim": 8}
    network = UNet2DConditionModel(sample_size=SAMPLE_SIZE, cross_attention_dim=HIDDEN, layers_per_block=1, **options)
    network.save_pretrained(folder / "unet", safe_serialization=True)
    model = load("wide", inspect(folder), device=torch.device("cpu"), dtype=torch.float32, buckets=CANDIDATES)
    model.buckets = profile(model, Buckets.up_to(32))
    return model


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


def test_all_buckets_agree_on_this_machine(model: LoadedModel) -> None:
    buckets = profile(model, Buckets.up_to(32))
    assert buckets.sizes == (2, 4, 8, 16, 32)
    assert set(buckets.stable) >= {4, 8, 16, 32}  # calls of two rows have other bits on some


@pytest.mark.parametrize("side", [8, 9, 12, 20])
def test_they_agree_at_other_sizes_and_with_wide_layers(wide: LoadedModel, side: int) -> None:
    stable = wide.buckets.stable
    first = answer(wide, stable[0], 0, side=side)
    assert set(stable) >= {4, 8, 16, 32}
    for bucket in stable:
        assert torch.equal(answer(wide, bucket, bucket - 1, side=side), first)


@pytest.fixture
def threads() -> Iterator[None]:
    """Give torch its threads back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("kind", ["model", "sdxl_model", "wide"])
def test_they_agree_whatever_the_threads(kind: str, request: pytest.FixtureRequest) -> None:
    model: LoadedModel = request.getfixturevalue(kind)
    told: dict[tuple[int, int], torch.Tensor] = {}
    for count in (1, 2):
        torch.set_num_threads(count)
        told |= {(count, bucket): answer(model, bucket, bucket - 1, side=12) for bucket in CANDIDATES.sizes}
    for one in told:
        assert torch.equal(told[one], told[1, 16]), one


def test_a_convolution_by_onednn_is_torchs_own() -> None:
    torch.manual_seed(0)
    layer = torch.nn.Conv2d(8, 12, 1).requires_grad_(False)
    image = torch.randn(16, 9, 7, 8).permute(0, 3, 1, 2)
    expected = layer(image)
    by_onednn(layer)
    assert torch.equal(layer(image), expected), "sixteen rows go to oneDNN in any case"
    assert torch.equal(layer(image[:3]), expected[:3])
    gone = weakref.ref(layer)
    del layer
    assert gone() is None, "memory is free as soon as a checkpoint leaves"


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


class Timed:
    """A UNet whose calls take a known time, by their rows."""

    def __init__(self, unet: Any, clock: list[float], seconds: Mapping[int, float]) -> None:
        self._unet, self._clock, self._seconds = unet, clock, seconds

    def __call__(self, sample: torch.Tensor, timesteps: torch.Tensor, **options: Any) -> Any:
        self._clock[0] += self._seconds[len(sample)]
        return self._unet(sample, timesteps, **options)


@pytest.mark.parametrize(
    ("seconds", "stable", "sizes"),
    [
        ({4: 1, 8: 1.2, 16: 1.4}, (4, 8, 16), (4, 8, 16)),  # each row is faster
        ({4: 1, 8: 1.2, 16: 2.3}, (4, 8, 16), (4, 8)),  # 4 % faster, and twice the wait
        ({4: 1, 8: 2, 16: 4}, (4, 8, 16), (4,)),
        ({4: 1, 8: 2.5, 16: 1.9}, (4, 8, 16), (4, 8, 16)),  # one of them was disturbed
        ({4: 1, 8: 2, 16: 4}, (8, 16), (4, 8)),  # the deterministic class needs one
        ({2: 1, 4: 2, 8: 4}, (2, 4, 8), (2, 4)),  # an edit has four rows
        ({2: 1, 4: 2, 8: 4}, (2,), (2,)),
    ],
)
def test_buckets_that_are_hardly_faster_per_row_are_left_out(
    model: LoadedModel,
    monkeypatch: pytest.MonkeyPatch,
    seconds: Mapping[int, float],
    stable: tuple[int, ...],
    sizes: tuple[int, ...],
) -> None:
    clock = [0.0]
    monkeypatch.setattr("services.diffusion.profile.time.perf_counter", lambda: clock[0])
    timed = replace(model, unet=Timed(model.unet, clock, seconds))
    buckets = worthwhile(timed, Buckets(tuple(seconds), stable))
    assert buckets.sizes == sizes
    assert buckets.stable == tuple(size for size in stable if size <= sizes[-1])
    assert buckets.call_s is not None
    assert dict(buckets.call_s) == pytest.approx(dict(seconds))


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
