"""Parts of a checkpoint as the published files have them."""

from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from training.runs.records import write_json

IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)  # CLIP's
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)


def write_text_encoder(folder: Path, text_encoder: Any, architecture: str = "CLIPTextModel") -> None:
    """Write a CLIP text encoder with the tensor names of the published files.

    transformers 5 writes them without `text_model.`, and reads both.
    """
    folder.mkdir(parents=True, exist_ok=True)
    text_encoder.config.architectures = [architecture]
    text_encoder.config.save_pretrained(folder)
    prefix = "text_model."
    tensors = {
        name if name.startswith("text_projection") else prefix + name.removeprefix(prefix): tensor.contiguous()
        for name, tensor in text_encoder.state_dict().items()
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def write_vision_tower(folder: Path, vision_tower: Any) -> None:
    """Write a `CLIPVisionModel` with its preprocessor, which are CLIP's own steps (LLMGA.md §1.4)."""
    folder.mkdir(parents=True, exist_ok=True)
    vision_tower.config.architectures = ["CLIPVisionModel"]
    vision_tower.config.save_pretrained(folder)
    prefix = "vision_model."
    tensors = {
        prefix + name.removeprefix(prefix): tensor.contiguous() for name, tensor in vision_tower.state_dict().items()
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    side = vision_tower.config.image_size
    write_json(
        folder / "preprocessor_config.json",
        {
            "image_processor_type": "CLIPImageProcessor",
            "do_convert_rgb": True,
            "do_resize": True,
            "size": {"shortest_edge": side},
            "resample": 3,
            "do_center_crop": True,
            "crop_size": {"height": side, "width": side},
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": list(IMAGE_MEAN),
            "image_std": list(IMAGE_STD),
        },
    )
