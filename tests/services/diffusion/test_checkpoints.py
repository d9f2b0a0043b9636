"""Folders that are refused, each with the file and the remedy in the message."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from services.diffusion.batching import Buckets
from services.diffusion.checkpoints import CheckpointFiles, UnfitCheckpoint, inspect
from services.diffusion.execution import resolve_device, resolve_dtype
from services.diffusion.loading import load
from shared.contracts import Task
from shared.settings import SettingsError

UNET = Path("unet/diffusion_pytorch_model.safetensors")


@pytest.fixture
def folder(mini: Path, tmp_path: Path) -> Path:
    """Return a copy of the checkpoint that the test may spoil."""
    return Path(shutil.copytree(mini, tmp_path / "sd15"))


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def pickled(folder: Path) -> None:
    (folder / UNET).unlink()
    with (folder / "unet" / "diffusion_pytorch_model.bin").open("wb") as file:
        pickle.dump({}, file)


def truncated(folder: Path) -> None:
    data = (folder / UNET).read_bytes()
    (folder / UNET).write_bytes(data[: len(data) // 2])


SPOILERS: list[tuple[Callable[[Path], object], str, str]] = [
    (shutil.rmtree, "sd15", "diffusers layout"),
    (pickled, "diffusion_pytorch_model.bin", "convert it to diffusion_pytorch_model.safetensors"),
    (lambda folder: (folder / "unet" / "custom.py").write_text("1/0"), "custom.py", "remove the file"),
    (lambda folder: edit(folder / "vae/config.json", auto_map={}), "vae/config.json", "auto_map"),
    (lambda folder: (folder / UNET).unlink(), str(UNET), "copy the complete checkpoint"),
    (lambda folder: (folder / "tokenizer/merges.txt").unlink(), "merges.txt", "copy the complete checkpoint"),
    (lambda folder: (folder / "scheduler/scheduler_config.json").unlink(), "scheduler_config.json", "copy"),
    (lambda folder: (folder / "unet/config.json").write_text("{"), "unet/config.json", "copy the file again"),
    (truncated, str(UNET), "copy it again"),
    (lambda folder: (folder / UNET).write_bytes(b"abc"), str(UNET), "copy it again"),
    (lambda folder: (folder / UNET).write_bytes(b"\xff" * 64), str(UNET), "copy it again"),
    (lambda folder: (folder / UNET).write_bytes(b"\x02" + b"\0" * 7 + b"[]"), str(UNET), "copy it again"),
    (lambda folder: edit(folder / "unet/config.json", in_channels=8), "unet/config.json", "an inpainting one 9"),
    (lambda folder: edit(folder / "unet/config.json", addition_embed_type="text_time"), "text_encoder_2", "missing"),
    (lambda folder: edit(folder / "unet/config.json", addition_embed_type="image"), "unet", "SD1.5"),
    (lambda folder: edit(folder / "unet/config.json", cross_attention_dim=768), "unet", "different checkpoints"),
    (lambda folder: (folder / "serving.json").write_text('{"steps": 3}'), "serving.json", "steps"),
    (
        lambda folder: (folder / "serving.json").write_text('{"num_inference_steps": 0}'),
        "serving.json",
        "num_inference_steps",
    ),
]


@pytest.mark.parametrize(("spoil", "file", "remedy"), SPOILERS)
def test_an_unfit_folder_is_refused_with_its_file_and_a_remedy(
    folder: Path, spoil: Callable[[Path], object], file: str, remedy: str
) -> None:
    spoil(folder)
    with pytest.raises(UnfitCheckpoint) as caught:
        inspect(folder)
    assert file in str(caught.value)
    assert remedy in str(caught.value)


def test_a_pickle_beside_safetensors_is_never_opened(folder: Path) -> None:
    (folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    loaded(inspect(folder))


def test_the_pipeline_named_in_the_index_does_not_matter(folder: Path) -> None:
    edit(folder / "model_index.json", _class_name="StableDiffusionXLInpaintPipeline", unet=["os", "system"])
    loaded(inspect(folder))
    (folder / "model_index.json").unlink()
    inspect(folder)


def loaded(files: CheckpointFiles) -> None:
    load("x", files, device=torch.device("cpu"), dtype=torch.float32, buckets=Buckets.up_to(4))


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_missing_and_misshapen_weights_are_refused(folder: Path, part: str) -> None:
    path = next((folder / part).glob("*.safetensors"))
    tensors = load_file(path)
    name = sorted(tensors)[0]
    missing = {key: value for key, value in tensors.items() if key != name}
    for spoiled in (missing, {**tensors, name: torch.zeros(3, 3)}):
        save_file(spoiled, path, metadata={"format": "pt"})
        with pytest.raises(UnfitCheckpoint) as caught:
            loaded(inspect(folder))
        assert part in str(caught.value)


def test_a_tokenizer_of_another_text_encoder_is_refused(folder: Path) -> None:
    path = folder / "tokenizer/vocab.json"
    vocabulary = json.loads(path.read_text())
    edit(path, **{"<|endoftext|>": len(vocabulary) + 5})
    with pytest.raises(UnfitCheckpoint, match="embeddings"):
        loaded(inspect(folder))


def test_the_hash_is_of_what_makes_the_pictures(mini: Path, folder: Path, files: CheckpointFiles) -> None:
    assert inspect(folder).sha256 == files.sha256, "not of the place"
    (folder / "README.md").write_text("a note")
    assert inspect(folder).sha256 == files.sha256
    path = folder / "vae/diffusion_pytorch_model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert inspect(folder).sha256 != files.sha256


def test_defaults_come_from_the_folder(mini: Path, folder: Path) -> None:
    assert inspect(mini).serving.num_inference_steps == 20
    (folder / "serving.json").unlink()
    assert inspect(folder).serving.num_inference_steps == 50


def test_devices_and_dtypes_follow_their_rules() -> None:
    cpu = torch.device("cpu")
    assert resolve_dtype("auto", cpu) is torch.float32
    assert resolve_dtype("auto", torch.device("cuda:0")) is torch.float16
    assert resolve_dtype("bfloat16", cpu) is torch.bfloat16
    with pytest.raises(SettingsError, match="float16 is slow"):
        resolve_dtype("float16", cpu)
    assert resolve_device("cpu") == cpu
    with pytest.raises(SettingsError, match="cuda:63 is not there"):
        resolve_device("cuda:63")


def test_a_unet_of_nine_channels_paints_and_does_nothing_else(mini: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(mini, folder)
    assert inspect(folder).tasks == (Task.TEXT_TO_IMAGE, Task.SIMILAR, Task.INPAINT, Task.OUTPAINT, Task.EDIT)
    edit(folder / "unet/config.json", in_channels=9)
    assert inspect(folder).tasks == (Task.INPAINT, Task.OUTPAINT)


def test_a_unet_that_cannot_be_inverted_edits_nothing(mini: Path, tmp_path: Path) -> None:
    for part, changes in (
        ("unet/config.json", {"time_cond_proj_dim": 32}),
        ("scheduler/scheduler_config.json", {"prediction_type": "sample"}),
        (
            "serving.json",
            {"num_inference_steps": 1, "guidance_scale": 0.0, "scheduler": "lcm", "timesteps": [800]},
        ),
    ):
        folder = tmp_path / part.partition("/")[0]
        shutil.copytree(mini, folder)
        edit(folder / part, **changes)
        assert inspect(folder).tasks == (Task.TEXT_TO_IMAGE, Task.SIMILAR, Task.INPAINT, Task.OUTPAINT)
