"""The loss of stage 2, against numbers worked by hand (LLMGA.md §§5.1, 5.3, 7.3)."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from services.diffusion.conditioning.prompts import CHUNK, training_form
from training.data.captioned import Collate, Learned
from training.denoising import Denoising, Schedule, joined, unit
from training.minis.diffusion import build_sd15
from training.runs import Batch

KEPT = torch.tensor([0.9, 0.5, 0.1])


class Letters:
    """A vocabulary of letters."""

    begin, end, pad = 98, 99, 97

    def ids(self, text: str) -> list[int]:
        return [ord(letter) - ord("a") for letter in text]


def test_noisy_latents_and_targets_are_those_of_ddpm() -> None:
    latents, noise = torch.full((3, 1, 1, 1), 2.0), torch.full((3, 1, 1, 1), -1.0)
    timesteps = torch.tensor([0, 1, 2])
    noisy = Schedule(KEPT, "epsilon").noisy(latents, noise, timesteps).flatten()
    torch.testing.assert_close(noisy, torch.tensor([1.581139, 0.707107, -0.316228]), atol=1e-6, rtol=0)
    assert torch.equal(Schedule(KEPT, "epsilon").target(latents, noise, timesteps), noise)
    velocity = Schedule(KEPT, "v_prediction").target(latents, noise, timesteps).flatten()
    torch.testing.assert_close(velocity, torch.tensor([-1.581139, -2.121320, -2.213594]), atol=1e-6, rtol=0)


def test_min_snr_weighs_by_the_paper_and_nothing_weighs_alike() -> None:
    # SNR is 9, 1 and 1/9.
    timesteps = torch.tensor([0, 1, 2])
    epsilon = Schedule(KEPT, "epsilon").weights(timesteps, 5.0)
    torch.testing.assert_close(epsilon, torch.tensor([5 / 9, 1.0, 1.0]), atol=1e-6, rtol=0)
    velocity = Schedule(KEPT, "v_prediction").weights(timesteps, 5.0)
    torch.testing.assert_close(velocity, torch.tensor([0.5, 0.5, 0.1]), atol=1e-6, rtol=0)
    assert torch.equal(Schedule(KEPT, "epsilon").weights(timesteps, None), torch.ones(3))


def test_other_predictions_are_refused() -> None:
    with pytest.raises(ValueError, match="sample"):
        Schedule.of({"prediction_type": "sample"})
    assert Schedule.of({"beta_schedule": "scaled_linear"}).prediction == "epsilon"


def test_pieces_are_joined_without_the_inner_begin_and_end() -> None:
    # 160 letters: three pieces of 75, so 3 * 75 + 2 tokens. The embedding of a token is its place in the text.
    prompt = training_form(Letters(), "a" * 160)
    assert (len(prompt.chunks), prompt.is_joined) == (3, True)
    places = torch.arange(3 * CHUNK, dtype=torch.float32).reshape(3, CHUNK, 1)
    embeddings, own = joined(places, torch.tensor([3]))
    assert own is None
    expected = [0, *range(1, 76), *range(78, 153), *range(155, 230), 230]
    assert embeddings.flatten().tolist() == expected
    assert len(expected) == 3 * 75 + 2


def test_a_short_prompt_beside_a_long_one_has_its_padding_masked() -> None:
    pieces = torch.ones((3, CHUNK, 2))
    embeddings, own = joined(pieces, torch.tensor([1, 2]))
    assert embeddings.shape == (2, 152, 2)
    assert own is not None
    assert own.sum(1).tolist() == [77, 152]
    assert not embeddings[0, 77:].any()


class Same:
    """An autoencoder that halves a picture's first four channels and adds no spread."""

    config = SimpleNamespace(scaling_factor=2.0)
    dtype = torch.float32

    def encode(self, pictures: torch.Tensor) -> Any:
        small = torch.nn.functional.avg_pool2d(pictures, 8)
        mean = torch.cat([small, small[:, :1]], dim=1)
        return SimpleNamespace(latent_dist=SimpleNamespace(mean=mean, std=torch.zeros_like(mean)))


def learned(*, mask: bool) -> tuple[Batch, Denoising]:
    pixels = np.full((16, 16, 3), 255, np.uint8)
    hole = np.zeros((16, 16), np.uint8)
    hole[:, 8:] = 255
    prompt = training_form(Letters(), "abc")
    cropped = SimpleNamespace(pixels=pixels)
    example = Learned(cropped, prompt, None, hole if mask else None, ())  # type: ignore[arg-type]
    batch = Collate(16, 3)([example, example], [1, 2])

    def text_encoder(ids: torch.Tensor) -> list[torch.Tensor]:
        return [ids[..., None].float()]

    return batch, Denoising(Schedule(KEPT, "epsilon"), Same(), text_encoder)


def test_the_nine_channels_are_noisy_latents_mask_and_masked_latents() -> None:
    batch, denoising = learned(mask=True)
    seen: dict[str, Any] = {}

    def unet(sample: torch.Tensor, timesteps: torch.Tensor, **conditions: Any) -> list[torch.Tensor]:
        seen["sample"], seen["conditions"] = sample, conditions
        return [batch["noise"]]

    loss = denoising(unet, batch)["loss"]
    assert loss == 0
    sample = seen["sample"]
    assert sample.shape == (2, 9, 2, 2)
    latents = torch.full((2, 4, 2, 2), 2.0)  # white is 1, times the scaling factor
    expected = denoising.schedule.noisy(latents, batch["noise"], batch["timesteps"])
    torch.testing.assert_close(sample[:, :4], expected)
    assert sample[0, 4].tolist() == [[0, 1], [0, 1]]  # 1: to be painted
    assert sample[0, 5:].tolist() == [[[2, 0], [2, 0]]] * 4  # a hole is gray, 0 in [-1, 1]
    assert seen["conditions"]["encoder_hidden_states"].shape == (2, 77, 1)


def test_the_mask_covers_a_latent_by_its_nearest_pixel() -> None:
    batch, denoising = learned(mask=True)
    batch["mask"] = torch.zeros((2, 1, 16, 16), dtype=torch.uint8)
    batch["mask"][:, :, 0, 0] = 1  # the pixel that nearest interpolation takes for the first latent
    mask, _ = denoising.known(batch)
    assert mask[0, 0].tolist() == [[1, 0], [0, 0]]


def test_text_to_image_has_four_channels_and_its_loss_is_the_mean_square() -> None:
    batch, denoising = learned(mask=False)

    def unet(sample: torch.Tensor, timesteps: torch.Tensor, **_: Any) -> list[torch.Tensor]:
        assert sample.shape == (2, 4, 2, 2)
        return [batch["noise"] + torch.tensor([1.0, 3.0])[:, None, None, None]]

    assert denoising(unet, batch)["loss"] == pytest.approx((1 + 9) / 2)


def test_noise_is_of_each_example_s_seed_and_not_of_its_company() -> None:
    batch, _ = learned(mask=True)
    prompt = training_form(Letters(), "abc")
    example = Learned(None, prompt, torch.zeros(2, 4, 2, 2), None, ())
    alone = Collate(16, 3)([example], [2])
    assert torch.equal(alone["noise"][0], batch["noise"][1])
    assert not torch.equal(batch["noise"][0], batch["noise"][1])


def test_precomputed_latents_are_a_sample_of_the_posterior() -> None:
    _, denoising = learned(mask=False)
    stored = torch.stack([torch.full((4, 2, 2), 3.0), torch.full((4, 2, 2), 0.5)])
    batch = {"latents": stored[None], "posterior_noise": torch.full((1, 4, 2, 2), -1.0)}
    assert torch.equal(denoising.latents(batch), torch.full((1, 4, 2, 2), 2.0 * (3.0 - 0.5)))


def test_offset_noise_and_perturbed_input_are_drawn_where_they_are_asked_for() -> None:
    prompt = training_form(Letters(), "abc")
    example = Learned(None, prompt, torch.zeros(2, 4, 8, 8), None, ())
    plain = Collate(64, 3)([example], [5])
    offset = Collate(64, 3, noise_offset=0.5)([example], [5])["noise"] - plain["noise"]
    assert torch.allclose(offset, offset[..., :1, :1].expand_as(offset), atol=1e-6)
    assert offset.abs().max() > 0.01
    perturbed = Collate(64, 3, input_perturbation=0.1)([example], [5])
    assert torch.equal(perturbed["noise"], plain["noise"])
    assert 0.05 < float((perturbed["perturbed"] - perturbed["noise"]).std()) < 0.15


def test_a_shift_draws_noisy_timesteps_more_often_and_stays_within_the_schedule() -> None:
    def timesteps(shift: float) -> torch.Tensor:
        example = Learned(None, training_form(Letters(), "abc"), torch.zeros(2, 4, 2, 2), None, ())
        drawn = Collate(16, 1000, timestep_shift=shift)([example] * 400, list(range(400)))["timesteps"]
        assert isinstance(drawn, torch.Tensor)
        return drawn

    even, shifted = timesteps(1.0), timesteps(2.5)
    assert 0.42 < (even < 500).double().mean() < 0.58
    assert 0.21 < (shifted < 500).double().mean() < 0.36  # u < 2/7 lies below the middle
    assert shifted.min() >= 0
    assert shifted.max() <= 999


def test_pixels_are_brought_to_minus_one_to_one() -> None:
    pixels = torch.tensor([0, 255], dtype=torch.uint8).reshape(1, 1, 2, 1).expand(1, 1, 2, 3)
    assert unit(pixels)[0, 0].tolist() == [[-1.0, 1.0]]


def test_the_training_form_is_what_serving_encodes_of_a_long_prompt(tmp_path_factory: pytest.TempPathFactory) -> None:
    from services.diffusion.conditioning.encoder import PromptEncoder
    from training.checkpoints import open_checkpoint

    folder = tmp_path_factory.mktemp("sd15")
    build_sd15(folder)
    parts = open_checkpoint(folder, "sd15", inpainting=False)
    prompt = training_form(parts.vocabulary, "a large filled red circle in the top left " * 12)
    assert len(prompt.chunks) > 1
    served = PromptEncoder(parts.text_encoder, torch.device("cpu"), torch.float32).encode(prompt).tokens
    with torch.no_grad():
        learned_of, own = joined(parts.text_encoder(torch.tensor(prompt.chunks))[0], torch.tensor([len(prompt.chunks)]))
    assert own is None
    torch.testing.assert_close(learned_of[0], served, atol=1e-5, rtol=0)
