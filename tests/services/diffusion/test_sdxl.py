"""SDXL in the engine: equal to the stock pipeline, in company of SD1.5 and of strangers, short prompts and long."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from services.diffusion.checkpoints import UnfitCheckpoint, inspect
from services.diffusion.conditioning.prompts import CONTENT, SDXL_CHUNKS, tokenize
from services.diffusion.engine import Engine
from services.diffusion.execution import Execution
from services.diffusion.library import Shelf
from services.diffusion.loading import LoadedModel
from services.diffusion.profile import profile, served_models
from services.diffusion.requests import RenderRequest
from shared.contracts import Scheduler
from shared.contracts.generation import PromptEncoding
from tests.services.diffusion.conftest import StartEngine
from tests.services.diffusion.pictures import PROMPTS, png, render, request_for, result
from tests.services.diffusion.stock import TOLERANCE, check_alone_and_among_strangers, distance, guidance_of, reference


@pytest.fixture
def sdxl_engine(start_engine: StartEngine, model: LoadedModel, sdxl_model: LoadedModel) -> Engine:
    """Return an engine over both checkpoints."""
    return start_engine(model, sdxl_model)


@pytest.mark.parametrize("kind", list(Scheduler))
async def test_latents_equal_the_stock_pipelines_alone_and_among_strangers_of_both_models(
    sdxl_engine: Engine, model: LoadedModel, sdxl_model: LoadedModel, sdxl_stock: Any, kind: Scheduler
) -> None:
    guidance = guidance_of(kind)
    expected = reference(
        sdxl_stock,
        kind,
        "latent",
        prompt="a snowman at night",
        negative_prompt="a red circle",
        num_inference_steps=6,
        guidance_scale=guidance,
        seed=42,
    )

    def wanted() -> RenderRequest:
        return request_for(
            sdxl_model, "a snowman at night", "a red circle", seed=42, steps=6, guidance=guidance, scheduler=kind
        )

    await check_alone_and_among_strangers(sdxl_engine, wanted, expected, [sdxl_model, model])


@pytest.mark.parametrize("guidance", [1.0, 6.0])
async def test_no_negative_prompt_is_an_embedding_of_zeros(
    sdxl_engine: Engine, sdxl_model: LoadedModel, sdxl_stock: Any, guidance: float
) -> None:
    expected = reference(
        sdxl_stock,
        Scheduler.EULER,
        "latent",
        prompt="a boat",
        num_inference_steps=4,
        guidance_scale=guidance,
        width=96,
        height=136,
        seed=3,
    )
    request = request_for(
        sdxl_model, "a boat", size=(96, 136), seed=3, steps=4, guidance=guidance, scheduler=Scheduler.EULER
    )
    assert request.picture.prompts.zero_negative is (guidance > 1)
    await render(sdxl_engine, request)
    assert distance(request, expected) <= TOLERANCE


async def test_pixels_equal_the_stock_pipelines(sdxl_engine: Engine, sdxl_model: LoadedModel, sdxl_stock: Any) -> None:
    image = reference(sdxl_stock, Scheduler.EULER, "pil", prompt="a fish", num_inference_steps=5, seed=9)
    request = request_for(sdxl_model, "a fish", seed=9, steps=5, guidance=5.0, scheduler=Scheduler.EULER)
    pixels = await render(sdxl_engine, request)
    assert np.abs(np.asarray(image, dtype=int) - pixels.astype(int)).max() <= 1


def long_reference(stock: Any, text: str, chunks: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Encode a long prompt as LLMGA.md §5.2 says, step by step."""
    hidden = []
    pooled = None
    for tokenizer, encoder in ((stock.tokenizer, stock.text_encoder), (stock.tokenizer_2, stock.text_encoder_2)):
        content = tokenizer(text, add_special_tokens=False, truncation=False).input_ids[: 75 * chunks]
        content += [tokenizer.pad_token_id] * (75 * chunks - len(content))
        parts = []
        for index in range(chunks):
            piece = content[75 * index : 75 * (index + 1)]
            ids = torch.tensor([[tokenizer.bos_token_id, *piece, tokenizer.eos_token_id]])
            output = encoder(ids, output_hidden_states=True)
            pooled = output[0][0]  # the last encoder's last piece stays
            state = output.hidden_states[-2][0]
            parts.append(state[0 if index == 0 else 1 : 77 if index == chunks - 1 else 76])
        hidden.append(torch.cat(parts))
    assert pooled is not None
    return torch.cat(hidden, dim=-1), pooled


@pytest.mark.parametrize(("text", "chunks"), [("a red house", 1), (PROMPTS[3] * 4, 3), (PROMPTS[3] * 20, 4)])
async def test_long_prompts_are_encoded_as_in_training(
    sdxl_engine: Engine, sdxl_model: LoadedModel, sdxl_stock: Any, text: str, chunks: int
) -> None:
    request = request_for(
        sdxl_model,
        text,
        encoding=PromptEncoding.LLMGA,
        seed=5,
        steps=3,
        guidance=5.0,
        scheduler=Scheduler.DDIM,
    )
    prompt = request.picture.prompts.prompt
    assert prompt.length == 75 * chunks + 2
    assert prompt.truncated == max(0, prompt.tokens - CONTENT * SDXL_CHUNKS)
    with torch.inference_mode():
        embeds, pooled = long_reference(sdxl_stock, text, chunks)
    expected = reference(
        sdxl_stock,
        Scheduler.DDIM,
        "latent",
        prompt_embeds=embeds[None],
        pooled_prompt_embeds=pooled[None],
        negative_prompt_embeds=torch.zeros_like(embeds)[None],
        negative_pooled_prompt_embeds=torch.zeros_like(pooled)[None],
        num_inference_steps=3,
        guidance_scale=5.0,
        seed=5,
    )
    await render(sdxl_engine, request)
    assert distance(request, expected) <= TOLERANCE


def test_a_negative_prompt_takes_as_many_pieces_as_the_prompt(sdxl_model: LoadedModel) -> None:
    for prompt, negative in (("a fox", PROMPTS[3] * 4), (PROMPTS[3] * 4, "fog")):
        pair = tokenize(
            sdxl_model.vocabulary, PromptEncoding.LLMGA, prompt, negative, second=sdxl_model.second_vocabulary
        )
        assert pair.negative is not None
        assert pair.prompt.length == pair.negative.length == 75 * 3 + 2


def test_brackets_are_text(sdxl_model: LoadedModel) -> None:
    pair = tokenize(
        sdxl_model.vocabulary, PromptEncoding.LLMGA, "a (red:1.4) fox", None, second=sdxl_model.second_vocabulary
    )
    assert pair.prompt.weights is None
    assert pair.prompt.tokens == len(sdxl_model.vocabulary.ids("a (red:1.4) fox"))


async def test_the_picture_is_the_same_bytes_among_strangers(
    sdxl_engine: Engine, model: LoadedModel, sdxl_model: LoadedModel
) -> None:
    def wanted() -> RenderRequest:
        return request_for(sdxl_model, "a fox", encoding=PromptEncoding.LLMGA, seed=1, steps=9)

    alone = png(await render(sdxl_engine, wanted()))
    handles = [
        sdxl_engine.submit(
            request_for(model if index % 2 else sdxl_model, f"{index}", seed=index, steps=1 + index, guidance=index % 3)
        )
        for index in range(12)
    ]
    assert png(await render(sdxl_engine, wanted())) == alone
    for handle in handles:
        assert await result(handle) is not None


def test_the_profile_finds_stable_buckets_and_the_announcement_says_sdxl(sdxl_model: LoadedModel) -> None:
    buckets = profile(sdxl_model, sdxl_model.buckets)
    assert len(buckets.stable) >= 1
    (served,) = served_models(
        {sdxl_model.name: Shelf(sdxl_model.files, 0)}, sdxl_model.name, Execution(sdxl_model.device, sdxl_model.dtype)
    )
    assert (served.kind, served.guidance_scale, served.scheduler) == ("sdxl", 5.0, Scheduler.EULER)
    assert served.max_prompt_tokens[PromptEncoding.LLMGA] == 300


def changed(mini: Path, folder: Path, part: str, **values: Any) -> Path:
    """Return a copy of the checkpoint with another configuration of one part."""
    shutil.copytree(mini, folder)
    path = folder / part / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    return folder


@pytest.mark.parametrize(
    ("part", "values", "message"),
    [
        ("unet", {"addition_embed_type": "image"}, "neither SD1.5's nor SDXL's"),
        ("unet", {"cross_attention_dim": 96}, "of different checkpoints"),
        ("unet", {"projection_class_embeddings_input_dim": 100}, "takes 100 added channels"),
        ("unet", {"addition_time_embed_dim": None}, "of different checkpoints"),
        ("text_encoder_2", {"hidden_size": "64"}, "of different checkpoints"),
    ],
)
def test_parts_of_different_checkpoints_are_refused(
    sdxl_mini: Path, tmp_path: Path, part: str, values: dict[str, Any], message: str
) -> None:
    with pytest.raises(UnfitCheckpoint, match=message):
        inspect(changed(sdxl_mini, tmp_path / "changed", part, **values))


@pytest.mark.parametrize("name", ["text_encoder_2/model.safetensors", "tokenizer_2/vocab.json"])
def test_a_missing_second_encoder_is_named(sdxl_mini: Path, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(sdxl_mini, folder)
    (folder / name).unlink()
    with pytest.raises(UnfitCheckpoint, match=name):
        inspect(folder)


def test_another_second_encoder_changes_the_hash(sdxl_mini: Path, tmp_path: Path) -> None:
    before = inspect(sdxl_mini).sha256
    assert inspect(changed(sdxl_mini, tmp_path / "changed", "text_encoder_2", layer_norm_eps=1e-6)).sha256 != before
