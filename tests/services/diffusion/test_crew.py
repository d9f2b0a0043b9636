"""Calls of a UNet that threads share are those of the UNet, bit for bit, however they are split."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
import torch

from services.diffusion.batching import Buckets
from services.diffusion.convolutions import by_onednn
from services.diffusion.crew import CrewedUNet, Split
from services.diffusion.loading import LoadedModel
from services.diffusion.profile import answer, measure, profile

ROWS = (4, 8, 16)  # calls of two rows have other bits on some machines


@pytest.fixture
def threads() -> Iterator[int]:
    """Let torch have two threads, however many there are."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield 2
    torch.set_num_threads(before)


def with_threads(count: int, model: LoadedModel, rows: int) -> torch.Tensor:
    def work() -> torch.Tensor:
        torch.get_num_threads()  # torch gives a thread its number when it is asked first
        torch.set_num_threads(count)
        return answer(model, rows, rows - 1)

    with ThreadPoolExecutor(1) as alone:
        return alone.submit(work).result()


def test_a_call_may_be_split_into_as_many_parts_as_have_threads_and_rows() -> None:
    crew = CrewedUNet(None, 4)
    assert list(crew.candidates(2, 2)) == [(1, 4), (1, 2), (1, 1)]
    assert list(crew.candidates(4, 2)) == [(1, 4), (2, 2), (2, 1)]
    assert list(crew.candidates(16, 2)) == [(1, 4), (2, 2), (4, 1)]
    assert list(crew.candidates(16, 8)) == [(1, 4), (2, 2), (2, 1)]
    assert list(CrewedUNet(None, 3).candidates(8, 2)) == [(1, 3), (2, 1)]
    assert list(CrewedUNet(None, 1).candidates(8, 2)) == [(1, 1)]


@pytest.mark.parametrize("kind", ["model", "sdxl_model"])
@pytest.mark.parametrize("rows", ROWS)
def test_every_split_has_the_same_bits(kind: str, rows: int, threads: int, request: pytest.FixtureRequest) -> None:
    model: LoadedModel = request.getfixturevalue(kind)
    crew = CrewedUNet(model.unet, threads)
    crewed = replace(model, unet=crew)
    for place in (0, rows // 2, rows - 1):
        whole = answer(model, rows, place, side=12)
        for split in crew.candidates(rows, 2):
            crew.splits[rows] = split
            assert torch.equal(answer(crewed, rows, place, side=12), whole), split
            assert torch.get_num_threads() == threads


def test_bits_do_not_depend_on_the_number_of_threads(model: LoadedModel, threads: int) -> None:
    told = [with_threads(count, model, rows) for count in (1, threads) for rows in ROWS]
    for one in told[1:]:
        assert torch.equal(one, told[0])


def test_a_convolution_by_onednn_is_torchs_own() -> None:
    torch.manual_seed(0)
    layer = torch.nn.Conv2d(8, 12, 1).requires_grad_(False)
    image = torch.randn(16, 9, 7, 8).permute(0, 3, 1, 2)
    expected = layer(image)
    by_onednn(layer)
    assert torch.equal(layer(image), expected), "sixteen rows go to oneDNN in any case"
    assert torch.equal(layer(image[:3]), expected[:3])


@pytest.mark.parametrize("failing", [0, 1])
def test_a_part_that_fails_fails_the_call_and_no_later_one(failing: int, model: LoadedModel, threads: int) -> None:
    breaks = True

    def unet(sample: torch.Tensor, timesteps: torch.Tensor, **options: Any) -> Any:
        if breaks and bool(sample[0, 0, 0, 0] == failing):
            raise MemoryError
        return (sample + timesteps[:, None, None, None],)

    crew = CrewedUNet(unet, threads)
    crew.splits[4] = Split(2, 1)
    sample = torch.arange(4.0)[:, None, None, None].expand(4, 4, 8, 8).div(2, rounding_mode="floor")
    with pytest.raises(MemoryError):
        crew(sample, torch.arange(4))
    assert torch.get_num_threads() == threads
    breaks = False
    (told,) = crew(sample, torch.arange(4))
    assert torch.equal(told[:, 0, 0, 0], torch.tensor([0.0, 1.0, 3.0, 4.0]))


def test_the_measurement_takes_the_fastest_split_of_those_with_the_same_bits(
    model: LoadedModel, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = 0.0
    whole = Split(1, threads)

    class Timed(CrewedUNet):
        """Undivided calls of 4 rows and divided ones of 8 and 16 are fast; those of 16 have other bits."""

        def __call__(self, sample: torch.Tensor, timesteps: torch.Tensor, **options: Any) -> tuple[torch.Tensor]:
            nonlocal clock
            rows = len(sample)
            is_whole = self.splits.get(rows, whole) == whole
            clock += rows * (1.0 if is_whole == (rows == 4) else 1.2) / (1 + rows / 16)
            (told,) = super().__call__(sample, timesteps, **options)
            return (told if is_whole or rows != 16 else told * (1 + 2.0**-20),)

    monkeypatch.setattr("services.diffusion.profile.time.perf_counter", lambda: clock)
    crew = Timed(model.unet, threads)
    crewed = replace(model, unet=crew)
    measure(crewed, Buckets(ROWS))
    assert crew.splits == {4: whole, 8: Split(2, 1), 16: whole}
    assert crewed.buckets.sizes == ROWS
    assert set(crewed.buckets.stable) == set(profile(model, Buckets(ROWS)).stable)
    assert crewed.buckets.call_s == pytest.approx({4: 4 / 1.25, 8: 8 / 1.5, 16: 16 * 1.2 / 2})
