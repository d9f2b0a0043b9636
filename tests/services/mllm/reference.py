"""LLMGA as its authors computed it: transformers over the *unconverted* weights (LLMGA.md §§1.4–1.8).

The base language model, the CLIP tower and the projector are put together by hand from the published tensors;
nothing of the converter or of the served folder is used.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, CLIPVisionConfig, CLIPVisionModel

TYPES = {
    "vicuna": "llama",
    "llama2": "llama",
    "llama3": "llama",
    "mistral": "mistral",
    "qwen2": "qwen2",
    "phi3": "phi3",
    "gemma": "gemma",
}
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


class Reference:
    """One checkpoint in the published layout, float32."""

    def __init__(self, folder: Path, family: str) -> None:
        self.family = family
        config = json.loads((folder / "config.json").read_text())
        tensors: dict[str, torch.Tensor] = {}
        for path in sorted(folder.glob("*.safetensors")):
            tensors |= {name: tensor.float() for name, tensor in load_file(path).items()}
        self.projector = {name: tensors.pop(name) for name in list(tensors) if name.startswith("model.mm_projector.")}
        prefix = "model.vision_tower.vision_tower."
        tower = {name.removeprefix(prefix): tensors.pop(name) for name in list(tensors) if name.startswith(prefix)}
        text = {name: value for name, value in config.items() if not name.startswith(("mm_", "use_mm", "tokenizer_"))}
        text = {name: value for name, value in text.items() if name not in {"model_type", "architectures"}}
        text["torch_dtype"] = "float32"
        if self.family == "phi3":  # "su" of 2024 is today's "longrope"
            text["rope_scaling"] = {**text["rope_scaling"], "type": "longrope"}
        self.model = AutoModelForCausalLM.from_config(
            AutoConfig.for_model(TYPES[family], **text), attn_implementation="eager"
        ).eval()
        if config["tie_word_embeddings"]:
            tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
        self.model.load_state_dict(tensors)
        self.embeddings = tensors["model.embed_tokens.weight"]
        self.tower = _tower(json.loads((folder / config["mm_vision_tower"] / "config.json").read_text()), tower)

    @torch.no_grad()
    def log_probabilities(
        self, prompt: Sequence[int], written: Sequence[int], *, image_id: int, pixels: npt.NDArray[np.uint8] | None
    ) -> torch.Tensor:
        """Return those after the prompt and after each written token but the last: (written, vocabulary)."""
        ids = [*prompt, *written]
        if pixels is None:
            embeddings = self.embeddings[torch.tensor(ids)]
        else:
            place = ids.index(image_id)  # the tokens of the picture take the place of one id (§1.8)
            before, after = torch.tensor(ids[:place]), torch.tensor(ids[place + 1 :])
            embeddings = torch.cat([self.embeddings[before], self.features(pixels), self.embeddings[after]])
        if self.family == "gemma":  # scales all that goes in, pictures too (§1.6)
            embeddings = embeddings * math.sqrt(embeddings.shape[-1])
        logits = self.model(inputs_embeds=embeddings[None]).logits[0].float()
        return torch.log_softmax(logits[-len(written) - 1 : -1], dim=-1)

    def features(self, pixels: npt.NDArray[np.uint8]) -> torch.Tensor:
        """Return what the language model gets for a picture: (patches, hidden)."""
        side = self.tower.config.image_size
        height, width = pixels.shape[:2]
        square = Image.fromarray(pixels).resize((max(height, width),) * 2, Image.Resampling.LANCZOS)  # §4
        small = np.asarray(square.resize((side, side), Image.Resampling.BICUBIC), dtype=np.float32) / 255
        values = (torch.from_numpy(small) - torch.tensor(MEAN)) / torch.tensor(STD)
        hidden = self.tower(values.permute(2, 0, 1)[None], output_hidden_states=True).hidden_states[-2][0, 1:]
        first, last = (
            (self.projector[f"model.mm_projector.{n}.weight"], self.projector[f"model.mm_projector.{n}.bias"])
            for n in (0, 2)
        )
        inner = torch.nn.functional.gelu(torch.nn.functional.linear(hidden, *first))
        return torch.nn.functional.linear(inner, *last)


def _tower(config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> Any:
    model = CLIPVisionModel._from_config(
        CLIPVisionConfig(**{**config, "hidden_act": "quick_gelu"}), attn_implementation="eager"
    ).eval()
    wanted = set(model.state_dict())
    # Newer versions of transformers leave the middle part of the names out.
    model.load_state_dict(
        {name if name in wanted else name.removeprefix("vision_model."): tensor for name, tensor in tensors.items()}
    )
    return model
