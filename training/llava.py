"""LLMGA's language model for training: CLIP tower, projector and a base language model (LLMGA.md §1.4 to §1.8).

The language model is transformers' own class of its family, so that its weights keep their published names. Logits are
computed where something is learned and nowhere else: of Gemma's 256,000 a token, most would be thrown away.
"""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional

from services.mllm.checkpoints import CheckpointError
from services.mllm.checkpoints.families import ARCHITECTURES, text_config
from services.mllm.checkpoints.files import read_json
from services.mllm.torchvision_schemas import register
from training.data.formats import DataError
from training.data.labels import IGNORED
from training.data.tokens import IMAGE_ID

FEATURE_LAYER = -2  # of the tower's hidden states; without its class token
PROJECTOR_FILE = "mm_projector.safetensors"
_PROJECTOR = "mm_projector."


class Llava(nn.Module):
    """A multimodal language model whose forward pass is the loss of a batch."""

    def __init__(self, language_model: Any, tower: Any, projector: nn.Sequential) -> None:
        super().__init__()
        self.language_model, self.tower, self.projector = language_model, tower.eval(), projector
        self._no_split_modules = sorted(language_model._no_split_modules)  # accelerate's FSDP wraps these one by one
        # Gemma's embedding scales what it looks up. The original scales the picture's features with it (LLMGA.md §1.6).
        self.image_scale = float(getattr(language_model.get_input_embeddings(), "scalar_embed_scale", 1.0))

    def forward(
        self, ids: torch.Tensor, labels: torch.Tensor, attention_mask: torch.Tensor, pixel_values: torch.Tensor
    ) -> torch.Tensor:
        """Return the mean loss over the learned tokens of a batch from `training.data.collator`."""
        hidden = self.language_model.get_decoder()(
            inputs_embeds=self.embeddings(ids, pixel_values), attention_mask=attention_mask, use_cache=False
        ).last_hidden_state
        targets = labels[:, 1:]  # each position says the next token
        is_learned = targets != IGNORED
        logits = self.language_model.get_output_embeddings()(hidden[:, :-1][is_learned])
        total = functional.cross_entropy(logits.float(), targets[is_learned], reduction="sum")
        mean: torch.Tensor = total / is_learned.sum().clamp(min=1)
        return mean

    def embeddings(self, ids: torch.Tensor, pixel_values: torch.Tensor) -> torch.Tensor:
        """Return what the language model reads, (b, length, hidden): tokens, and the picture's features at `IMAGE_ID`.

        Pictures beyond those that the ids have places for are computed and not used.
        """
        is_image = ids == IMAGE_ID
        embedded = self.language_model.get_input_embeddings()(ids.masked_fill(is_image, 0))
        features = self.features(pixel_values).flatten(0, 1)
        used = features[: int(is_image.sum())].to(embedded.dtype)
        embedded = embedded.masked_scatter(is_image[..., None], used)
        kept: torch.Tensor = embedded + 0.0 * features.sum().to(
            embedded.dtype
        )  # the projector is in every backward pass
        return kept

    def features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Return the features of pictures: (b, 3, side, side) -> (b, patches, hidden)."""
        with torch.no_grad():
            states = self.tower(pixel_values.to(self.tower.dtype), output_hidden_states=True).hidden_states
        projected: torch.Tensor = self.projector(states[FEATURE_LAYER][:, 1:].to(self.projector[0].weight.dtype))
        return projected * self.image_scale

    @property
    def image_tokens(self) -> int:
        """Return how many tokens a picture takes."""
        config = self.tower.config
        return int((config.image_size // config.patch_size) ** 2)


def new_projector(tower_hidden: int, hidden: int) -> nn.Sequential:
    """Return the two layers between tower and language model, as torch initializes them (LLMGA.md §1.5)."""
    return nn.Sequential(nn.Linear(tower_hidden, hidden), nn.GELU(), nn.Linear(hidden, hidden))


def read_projector(path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a projector file: ours, or the published `mm_projector.bin` (LLMGA.md §1.5).

    Raises:
        DataError: there is none, or it holds something else.
    """
    try:
        if path.suffix == ".safetensors":
            tensors = load_file(path)
        else:
            tensors = torch.load(path, map_location="cpu", weights_only=True)  # runs no code of the file
        return {name.partition(_PROJECTOR)[2]: tensor for name, tensor in tensors.items() if _PROJECTOR in name}
    except Exception as error:  # the libraries raise anything on a file of another kind
        raise DataError(f"{path}: it is no projector ({type(error).__name__}). Give what `pretrain` wrote.") from None


def load_llava(
    base: Path,
    tower: Path,
    *,
    attention: str = "sdpa",
    bits: int | None = None,
    dtype: torch.dtype = torch.float32,
    gradient_checkpointing: bool = False,
) -> Llava:
    """Put a base language model and a tower together, with a new projector.

    base: a Hugging Face checkpoint, or a published LLMGA one, of which the language model is taken.
    bits: 4 (nf4, double quantization) or 8 for a language model that only an adapter will change.

    Raises:
        DataError: a folder is missing, or its configuration makes no sense.
    """
    for folder, what in ((base, "base language model"), (tower, "CLIP tower")):
        if not (folder / "config.json").is_file():
            raise DataError(
                f"{folder}: there is no {what}. Download it there: `hf download NAME --local-dir {folder}`."
            )
    register()
    from transformers import AutoModelForCausalLM, CLIPVisionModel
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # one for each file of weights
    more: dict[str, Any] = {}
    if bits is not None:
        more = {"quantization_config": _quantization(bits, dtype)}
    if (config := _published_config(base)) is not None:
        more["config"] = config
    language_model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype, attn_implementation=attention, **more)
    vision = CLIPVisionModel.from_pretrained(tower, dtype=dtype, attn_implementation="sdpa")
    if gradient_checkpointing:
        language_model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    projector = new_projector(vision.config.hidden_size, language_model.config.hidden_size).to(dtype)
    return Llava(language_model, vision, projector)


def _published_config(base: Path) -> Any | None:
    """Return the language model's configuration in a published LLMGA checkpoint, None of any other."""
    path = base / "config.json"
    try:
        published = read_json(path)
        architecture = ARCHITECTURES.get(str(published.get("model_type")))
        if architecture is None:
            return None
        config = text_config(path, architecture, published)
    except CheckpointError as error:
        raise DataError(str(error)) from None
    from transformers import AutoConfig

    return AutoConfig.for_model(**config)


def _quantization(bits: int, dtype: torch.dtype) -> Any:
    from transformers import BitsAndBytesConfig

    if bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
