"""The CLIP tower: its configuration, its tensors, and how pictures are prepared for it.

A published checkpoint holds a copy of the tower's weights but not its configuration: `mm_vision_tower` names
that, and may name a private folder of the authors (LLMGA.md §1.2). So the configuration comes from a folder
of that name inside the checkpoint if there is one, and otherwise it is CLIP ViT-L/14 at 336 px, the only
tower LLMGA was trained with; either way the copy's shapes must agree with it.

Another tower may be given in the copy's place: the released command lines load OpenAI's own weights, of which the
copy is the bfloat16 rounding (LLMGA.md §1.4).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.mllm.checkpoints.errors import USE_SAFETENSORS, CheckpointError
from services.mllm.checkpoints.families import Shape
from services.mllm.checkpoints.files import read_json
from services.mllm.checkpoints.tensors import FLOATS, Tensor, read_header

CLIP_L_336: dict[str, Any] = {
    "hidden_act": "quick_gelu",
    "hidden_size": 1_024,
    "image_size": 336,
    "intermediate_size": 4_096,
    "layer_norm_eps": 1e-05,
    "num_attention_heads": 16,
    "num_channels": 3,
    "num_hidden_layers": 24,
    "patch_size": 14,
    "projection_dim": 768,
}
IMAGE_MEAN = [0.48145466, 0.4578275, 0.40821073]
IMAGE_STD = [0.26862954, 0.26130258, 0.27577711]

_NUMBERS = (
    "hidden_size",
    "image_size",
    "intermediate_size",
    "num_attention_heads",
    "num_hidden_layers",
    "patch_size",
)
_REMEDY = (
    "Put the tower's own config.json (CLIPVisionModel) there, or remove the folder to use CLIP ViT-L/14 at 336 px."
)


@dataclass(frozen=True)
class Tower:
    """A CLIP vision tower: `config` in Hugging Face's terms, and where it came from."""

    config: dict[str, Any]
    origin: str

    @property
    def tokens(self) -> int:
        """How many tokens a picture takes: its patches, without the class token."""
        return int((self.config["image_size"] // self.config["patch_size"]) ** 2)

    def shapes(self) -> dict[str, Shape]:
        """Return names and shapes of the tensors below `vision_model.`."""
        hidden, inner, patch = (self.config[name] for name in ("hidden_size", "intermediate_size", "patch_size"))
        shapes: dict[str, Shape] = {
            "embeddings.class_embedding": (hidden,),
            "embeddings.patch_embedding.weight": (hidden, 3, patch, patch),
            "embeddings.position_embedding.weight": (self.tokens + 1, hidden),
        }
        norms = ["pre_layrnorm", "post_layernorm"]  # the first is spelled so in CLIP
        for index in range(self.config["num_hidden_layers"]):
            layer = f"encoder.layers.{index}"
            norms += [f"{layer}.layer_norm1", f"{layer}.layer_norm2"]
            for name in ("q", "k", "v", "out"):
                shapes[f"{layer}.self_attn.{name}_proj.weight"] = (hidden, hidden)
                shapes[f"{layer}.self_attn.{name}_proj.bias"] = (hidden,)
            shapes[f"{layer}.mlp.fc1.weight"], shapes[f"{layer}.mlp.fc1.bias"] = (inner, hidden), (inner,)
            shapes[f"{layer}.mlp.fc2.weight"], shapes[f"{layer}.mlp.fc2.bias"] = (hidden, inner), (hidden,)
        for norm in norms:
            shapes[f"{norm}.weight"] = shapes[f"{norm}.bias"] = (hidden,)
        return shapes

    def preprocessor(self) -> dict[str, Any]:
        """Return the image processor's configuration: CLIP's own steps (LLMGA.md §1.4)."""
        side = self.config["image_size"]
        return {
            "image_processor_type": "CLIPImageProcessor",
            "processor_class": "LlavaProcessor",
            "do_convert_rgb": True,
            "do_resize": True,
            "size": {"shortest_edge": side},
            "resample": 3,
            "do_center_crop": True,
            "crop_size": {"height": side, "width": side},
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": IMAGE_MEAN,
            "image_std": IMAGE_STD,
        }


def find_tower(folder: Path, name: str) -> Tower:
    """Return the tower of a checkpoint whose config names it so.

    Raises:
        CheckpointError: the checkpoint brings a configuration that makes no sense.
    """
    is_plain_name = bool(name) and name not in {".", ".."} and not any(sign in name for sign in "/\\\0")
    path = folder / name / "config.json"
    if not is_plain_name or not path.is_file():
        return Tower(dict(CLIP_L_336), "CLIP ViT-L/14 at 336 px, built in")
    found = read_json(path)
    return Tower(_checked(path, found.get("vision_config", found)), f"{name}/config.json")


def read_tower(folder: Path) -> tuple[Tower, dict[str, Tensor]]:
    """Return a CLIP model's tower, and its tensors by their names below `vision_model.`; its text part is left out.

    Raises:
        CheckpointError: it is no CLIP model in safetensors format.
    """
    path, weights = folder / "config.json", folder / "model.safetensors"
    if not weights.is_file():
        raise CheckpointError(weights, "there are no weights of a tower", USE_SAFETENSORS)
    found = read_json(path)
    tower = Tower(_checked(path, found.get("vision_config", found)), f"{folder.resolve().name}, given")
    tensors = read_header(weights)
    chosen = {}
    for name, shape in tower.shapes().items():
        tensor = tensors.get(f"vision_model.{name}")
        if tensor is None or tensor.shape != shape or tensor.dtype not in FLOATS:
            raise CheckpointError(
                weights,
                f"tensor 'vision_model.{name}' is missing, or not {list(shape)} floating-point values",
                "Name a CLIP model in the Hugging Face layout, such as openai/clip-vit-large-patch14-336.",
            )
        chosen[name] = tensor
    return tower, chosen


def _checked(path: Path, found: object) -> dict[str, Any]:
    if not isinstance(found, dict):
        raise CheckpointError(path, "its vision_config is no JSON object", _REMEDY)
    config = {key: found.get(key, value) for key, value in CLIP_L_336.items()}
    for key in _NUMBERS:
        value = config[key]
        if type(value) is not int or not 1 <= value <= 16_384:
            raise CheckpointError(path, f"{key} is no sensible number", _REMEDY)
    if config["image_size"] % config["patch_size"] or config["hidden_size"] % config["num_attention_heads"]:
        raise CheckpointError(path, "its sizes contradict each other", _REMEDY)
    if config["hidden_act"] not in {"quick_gelu", "gelu"} or config["num_channels"] != 3:
        raise CheckpointError(path, "it is not a CLIP tower for colored pictures", _REMEDY)
    return config
