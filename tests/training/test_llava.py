"""The model in training is the published one: its exports compute what it computes, as the authors' code would."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from services.mllm.checkpoints import convert
from services.mllm.conversation import Turn
from services.mllm.pictures import Pixels
from tests.services.mllm.reference import Reference
from training.data.collator import Collator, Encoded
from training.data.labels import IGNORED, labeled
from training.data.pictures import TowerInput
from training.data.tokens import IMAGE_ID, prompt_builder
from training.export import export_published
from training.llava import Llava, load_llava, read_projector
from training.minis.bases import FAMILIES, build_base, build_tower

TURNS = [Turn("What is this?", "A red circle."), Turn("draw it", "<gen_image> A star. </gen_image>")]
rng = np.random.default_rng(0)
PIXELS: Pixels = rng.integers(0, 256, (70, 70, 3), dtype=np.uint8)


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def folder(family: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(family)
    build_base(folder / "base", family)
    build_tower(folder / "clip-mini")
    return folder


@pytest.fixture(scope="module")
def llava(folder: Path) -> Llava:
    torch.manual_seed(1)
    return load_llava(folder / "base", folder / "clip-mini", attention="eager").eval()


def export(folder: Path, family: str, llava: Llava, target: Path, **settings: Any) -> None:
    export_published(
        target,
        family=family,
        base=folder / "base",
        tower=folder / "clip-mini",
        language_model=llava.language_model.state_dict(),
        changes={},
        projector=llava.projector.state_dict(),
        dtype=torch.float32,
        **settings,
    )


def batch_of(folder: Path, family: str, llava: Llava, *, has_image: bool) -> dict[str, torch.Tensor]:
    text = labeled(prompt_builder(folder / "base", family), TURNS, has_image=has_image)
    picture = TowerInput(56).values(PIXELS) if has_image else None
    return Collator(llava.image_tokens, 2_048, 56)([Encoded(text, picture)], [0])


@pytest.mark.parametrize("has_image", [False, True])
def test_loss_is_that_of_the_published_model(
    folder: Path, family: str, llava: Llava, tmp_path: Path, has_image: bool
) -> None:
    batch = batch_of(folder, family, llava, has_image=has_image)
    with torch.no_grad():
        loss = float(llava(**batch))
    export(folder, family, llava, tmp_path / "published")
    reference = Reference(tmp_path / "published", family)
    text = labeled(prompt_builder(folder / "base", family), TURNS, has_image=has_image)
    last = max(index for index, label in enumerate(text.labels) if label == IGNORED)  # the last turn's prompt
    total, count = 0.0, 0
    pixels = PIXELS if has_image else None
    for start, end in ((spans(text.labels)[0]), (last + 1, len(text.ids))):
        written = text.ids[start:end]
        found = reference.log_probabilities(text.ids[:start], written, image_id=IMAGE_ID, pixels=pixels)
        total += sum(float(found[index, token]) for index, token in enumerate(written))
        count += len(written)
    assert loss == pytest.approx(-total / count, rel=1e-4)


def spans(labels: list[int]) -> list[tuple[int, int]]:
    edges = [
        index
        for index in range(len(labels) + 1)
        if (index < len(labels) and labels[index] != IGNORED) != (index > 0 and labels[index - 1] != IGNORED)
    ]
    return list(zip(edges[::2], edges[1::2], strict=True))


def test_rows_of_a_batch_do_not_see_each_other(folder: Path, family: str, llava: Llava) -> None:
    builder = prompt_builder(folder / "base", family)
    collator = Collator(llava.image_tokens, 2_048, 56)
    short = Encoded(labeled(builder, TURNS[:1], has_image=False), None)
    long = Encoded(labeled(builder, TURNS, has_image=True), TowerInput(56).values(PIXELS))
    with torch.no_grad():
        alone = [float(llava(**collator([each], [0]))) for each in (short, long)]
        together = float(llava(**collator([short, long], [0, 0])))
    counts = [sum(label != IGNORED for label in each.text.labels) for each in (short, long)]
    expected = sum(loss * count for loss, count in zip(alone, counts, strict=True)) / sum(counts)
    assert together == pytest.approx(expected, rel=1e-5)


def test_export_is_taken_by_the_converter_in_shards_too(
    folder: Path, family: str, llava: Llava, tmp_path: Path
) -> None:
    export(folder, family, llava, tmp_path / f"llmga-{family}", shard_bytes=300_000)
    files = sorted(path.name for path in (tmp_path / f"llmga-{family}").glob("*.safetensors"))
    assert len(files) >= 3
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    facts = convert(tmp_path / f"llmga-{family}", tmp_path / "served")
    assert facts.family == family
    assert facts.image_tokens == llava.image_tokens == 16
    assert bool(facts.scaled) == (family == "gemma")
    stop = json.loads((tmp_path / "served" / "generation_config.json").read_text())["eos_token_id"]
    assert stop


def test_text_alone_still_reaches_the_projector_s_gradient(folder: Path, family: str, llava: Llava) -> None:
    llava.zero_grad()
    llava(**batch_of(folder, family, llava, has_image=False)).backward()
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in llava.projector.parameters())
    assert all(parameter.grad is None for parameter in llava.tower.parameters())
    llava.zero_grad()


def test_published_projector_file_is_read_and_other_pickles_are_refused(tmp_path: Path, llava: Llava) -> None:
    from training.data.formats import DataError

    published = {f"model.mm_projector.{name}": tensor for name, tensor in llava.projector.state_dict().items()}
    torch.save(published, tmp_path / "mm_projector.bin")
    assert read_projector(tmp_path / "mm_projector.bin").keys() == {"0.weight", "0.bias", "2.weight", "2.bias"}
    torch.save({"model.mm_projector.0.weight": Path("/")}, tmp_path / "hostile.bin")
    with pytest.raises(DataError, match=r"hostile\.bin: it is no projector"):
        read_projector(tmp_path / "hostile.bin")


def test_an_llmga_checkpoint_goes_on_learning_where_it_was(
    folder: Path, family: str, llava: Llava, tmp_path: Path
) -> None:
    export(folder, family, llava, tmp_path / "published", tells_changes=True)
    assert convert(tmp_path / "published", tmp_path / "served", name=f"llmga-{family}").tells_changes
    again = load_llava(tmp_path / "published", folder / "clip-mini", attention="eager").eval()
    again.projector.load_state_dict(read_projector(tmp_path / "published" / "model.safetensors"))
    batch = batch_of(folder, family, llava, has_image=True)
    with torch.no_grad():
        torch.testing.assert_close(again(**batch), llava(**batch), rtol=0, atol=0)


def test_an_adapter_on_an_llmga_checkpoint_leaves_each_tensor_once(
    folder: Path, family: str, llava: Llava, tmp_path: Path
) -> None:
    export(folder, family, llava, tmp_path / "published")
    export_published(
        tmp_path / "again",
        family=family,
        base=tmp_path / "published",
        tower=folder / "clip-mini",
        language_model=None,
        changes={},
        projector={name: tensor + 1 for name, tensor in llava.projector.state_dict().items()},
        dtype=torch.float32,
    )
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("published", "again"))
    assert set(before) == set(after)
    for name, tensor in before.items():
        torch.testing.assert_close(after[name], tensor + 1 if "mm_projector" in name else tensor, rtol=0, atol=0)
    convert(tmp_path / "again", tmp_path / "served")
