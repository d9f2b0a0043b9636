"""Stage 2's captioned pictures: prompts and SDXL's ids by hand, and what becomes of bad data."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from training.data.captioned import Captioned, Collate, Learned, Published
from training.data.formats import DataError, LeftOut, OnError, read_items
from training.data.latents import Latents, precompute

BEGIN, END, PAD = 98, 99, 97
SIDE = 16


class Letters:
    """A vocabulary of letters, with the padding of SD's tokenizer (its end) or of SDXL's second one."""

    begin, end = BEGIN, END

    def __init__(self, pad: int = END) -> None:
        self.pad = pad

    def ids(self, text: str) -> list[int]:
        return [ord(letter) - ord("a") for letter in text]


def captioned(folder: Path, *captions: str, on_error: OnError = "stop", **changes: Any) -> Captioned:
    """Return the examples of the folder's `0.png`, `1.png` and so on; the ones that are missing are made, in gray."""
    entries = []
    for number, caption in enumerate(captions):
        path = folder / f"{number}.png"
        if not path.exists():
            Image.new("RGB", (SIDE, SIDE), (10 * number,) * 3).save(path)
        entries.append({"image": path.name, "caption": caption})
    (folder / "train.json").write_text(json.dumps(entries), encoding="utf-8")
    source = Published(read_items(folder / "train.json", "similar_image", images=folder))
    given: dict[str, Any] = {"vocabulary": Letters(), "second": None, "size": SIDE, "random_crop": False, "flip": False}
    return Captioned(source, **given | {"empty_prompts": 0.0, "masks": None, "on_error": on_error} | changes)


def pixels_of(example: Learned) -> np.ndarray:
    assert example.cropped is not None
    return example.cropped.pixels


def test_sdxl_s_batch_has_both_encoders_ids_and_six_numbers(tmp_path: Path) -> None:
    Image.new("RGB", (29, 20)).save(tmp_path / "0.png")
    examples = captioned(tmp_path, "abc", second=Letters(PAD))
    batch = Collate(SIDE, 1_000)([examples.example(0, seed=0)], [0])
    # The second encoder's padding stands in front of the one end token (LLMGA.md §5.2).
    assert batch["input_ids"].tolist() == [[BEGIN, 0, 1, 2, *[END] * 73]]
    assert batch["second_ids"].tolist() == [[BEGIN, 0, 1, 2, *[PAD] * 72, END]]
    assert batch["chunks"].tolist() == [1]
    # 20 x 29 becomes 16 x 23, of which 7 columns are left over: round(3.5) is 4.
    assert batch["time_ids"].tolist() == [[20, 29, 0, 4, 16, 16]]
    assert batch["time_ids"].dtype == torch.float32


def test_caption_of_two_thousand_tokens_is_learned_up_to_its_three_hundredth(tmp_path: Path) -> None:
    caption = "abcdefghij" * 200
    example = captioned(tmp_path, caption, second=Letters(PAD)).example(0, seed=0)
    assert example.prompt.second is not None
    for chunks in (example.prompt.chunks, example.prompt.second):
        assert [len(chunk) for chunk in chunks] == [77] * 4
        assert [number for chunk in chunks for number in chunk[1:-1]] == Letters().ids(caption)[:300]
    assert example.prompt.truncated == 1_700


def test_empty_prompt_has_the_length_of_the_one_that_it_replaces(tmp_path: Path) -> None:
    example = captioned(tmp_path, "a" * 100, empty_prompts=1.0).example(0, seed=0)
    assert example.prompt.chunks == ((BEGIN, *[END] * 76),) * 2


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "CMYK"])
def test_every_kind_of_picture_is_learned_in_its_colors(tmp_path: Path, mode: str) -> None:
    gray = Image.new("L", (SIDE, SIDE), 200).convert(mode)
    gray.save(tmp_path / "0.png", "JPEG" if mode == "CMYK" else "PNG")  # the content decides, not the name
    batch = Collate(SIDE, 1_000)([captioned(tmp_path, "a").example(0, seed=0)], [0])
    assert batch["pixels"].shape == (1, SIDE, SIDE, 3)
    assert abs(batch["pixels"].float() - 200).max() <= 1


def damaged(path: Path) -> None:
    path.write_bytes(b"\x89PNG\r\n\x1a\n broken")


def huge(path: Path) -> None:
    Image.new("1", (20_001, 8)).save(path)


def missing(path: Path) -> None:
    path.unlink(missing_ok=True)


@pytest.mark.parametrize("spoil", [damaged, huge, missing])
def test_bad_picture_stops_the_run_or_the_next_takes_its_place(
    tmp_path: Path, spoil: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    stopping, skipping = (captioned(tmp_path, "a", "b", on_error=on_error) for on_error in ("stop", "skip"))
    spoil(tmp_path / "0.png")
    with pytest.raises(DataError, match=r"0\.png: "):
        stopping.example(0, seed=0)
    for _ in range(5):
        example = skipping.example(0, seed=0)
        assert example.prompt.chunks[0][1] == 1, "its caption comes with it"
        assert (pixels_of(example) == 10).all()
    assert skipping.counts == {"skipped": 5}
    assert caplog.text.count("0.png") == 3, "the rest is counted"


def test_last_picture_gives_its_place_to_the_first(tmp_path: Path) -> None:
    examples = captioned(tmp_path, "a", "b", on_error="skip")
    damaged(tmp_path / "1.png")
    assert examples.example(1, seed=0).prompt.chunks[0][1] == 0


def test_data_in_which_nothing_can_be_used_stop_the_run(tmp_path: Path) -> None:
    examples = captioned(tmp_path, "a", on_error="skip")
    damaged(tmp_path / "0.png")
    with pytest.raises(DataError, match="100 items in a row"):
        examples.example(0, seed=0)


class Means:
    """An autoencoder whose latents are the mean color of 8 x 8 pixels."""

    dtype = torch.float32

    def encode(self, pictures: torch.Tensor) -> SimpleNamespace:
        mean = torch.nn.functional.avg_pool2d(pictures, 8)[:, [0, 1, 2, 2]]
        return SimpleNamespace(latent_dist=SimpleNamespace(mean=mean, std=mean.abs()))


def latents_of(folder: Path, examples: Captioned) -> Latents:
    device = torch.device("cpu")
    return precompute(folder, len(examples), lambda at: examples.cropped(at, 0).pixels, Means(), device, "a test")


def test_picture_without_latents_stops_their_making_or_is_skipped_with_its_caption(tmp_path: Path) -> None:
    stopping, skipping = (captioned(tmp_path, *"abc", on_error=on_error) for on_error in ("stop", "skip"))
    damaged(tmp_path / "1.png")
    with pytest.raises(DataError, match=r"1\.png") as stopped:
        latents_of(tmp_path / "latents", stopping)
    assert not isinstance(stopped.value, LeftOut)
    latents = latents_of(tmp_path / "latents", skipping)
    assert [bool(latents(number).isnan().any()) for number in range(3)] == [False, True, False]

    example = replace(skipping, latents=latents).example(1, seed=0)
    assert example.cropped is None
    assert example.prompt.chunks[0][1] == 2
    assert example.latents is not None
    assert torch.equal(example.latents, latents(2))
    assert skipping.counts == {"skipped": 1}
    with pytest.raises(DataError, match="picture 1 was left out when the latents were made"):
        replace(stopping, latents=latents).example(1, seed=0)


def test_latents_of_pictures_of_which_none_can_be_used_are_refused(tmp_path: Path) -> None:
    examples = captioned(tmp_path, "a", on_error="skip")
    damaged(tmp_path / "0.png")
    with pytest.raises(DataError, match="none of 1 pictures"):
        latents_of(tmp_path / "latents", examples)
