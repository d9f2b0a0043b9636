"""How CLIP's two encoders learn from the world together: which picture has which text, and what each token is about.

Contrast alone leaves it to chance where a text encoder keeps what a sentence said. Here linear readings of its last
layer must find an object's color, shape, size, fill and place in the last word of its sentence, and the background
in the last word of its own and in the end token. So a UNet that looks for a place finds the whole object there. In
the same way each patch of the vision tower, in the last layer but one (which language models read, LLMGA.md §1.4), must
know what stands in its cell and what the background is.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from services.diffusion.conditioning.prompts import CHUNK, CONTENT
from training.bases.export import IMAGE_MEAN, IMAGE_STD
from training.bases.reconstruction import Pixels
from training.runs import Batch
from training.world import draw, sample_scene
from training.world.captions import background_sentence, object_sentence
from training.world.objects import BACKGROUNDS, COLORS, PLACES, Background, Fill, Object, Pattern, Scene, Shape, Size
from training.world.requests import request_of
from training.world.splits import Split

WORLD_SIZE = 1 << 20  # scenes of one pass
ENDLESS = 1 << 40
REQUEST_SHARE = 0.1  # texts that are a person's words, for contrast only
BACKGROUND_SHARE = 0.85  # of the other texts, those that tell the background


UNLABELED = -100  # torch's `ignore_index`

_OBJECT: dict[str, list[Any]] = {"color": list(COLORS), "shape": list(Shape), "size": list(Size), "fill": list(Fill)}
_GROUND: dict[str, list[Any]] = {"ground": list(BACKGROUNDS), "pattern": list(Pattern)}
TEXT_CLASSES = {name: len(words) for name, words in {**_OBJECT, "place": PLACES, **_GROUND}.items()}
PATCH_CLASSES = {  # one more for an empty cell
    **{name: len(words) + 1 for name, words in _OBJECT.items()},
    **{name: len(words) for name, words in _GROUND.items()},
}
Encode = Callable[[str], Sequence[int]]  # text to content tokens


class Told(NamedTuple):
    """A text in CLIP's form, and what its tokens are about: labels by name, one for each of the 77 positions."""

    ids: list[int]
    labels: dict[str, list[int]]


class Pair(NamedTuple):
    """A picture, what is true of its patches, and a text."""

    pixels: Pixels
    patches: dict[str, list[int]]
    told: Told


class Seen(NamedTuple):
    """A picture and what is true of its patches."""

    pixels: Pixels
    patches: dict[str, list[int]]


@dataclass(frozen=True)
class LabeledPictures:
    """Pictures whose patches are known, for a tower alone."""

    image_size: int
    patch_size: int
    split: Split = "train"

    def __len__(self) -> int:
        return ENDLESS

    def example(self, position: int, seed: int) -> Seen:
        """Return the picture of a scene."""
        scene = sample_scene(position, self.split)
        return Seen(draw(scene, self.image_size), patch_labels(scene, self.image_size // self.patch_size))


@dataclass(frozen=True)
class WorldPairs:
    """Pictures with texts: whole captions, parts of captions, and requests.

    A text holds at most four objects, as CLIP's 75 tokens do; parts teach what a sentence means wherever it stands.
    """

    encode: Encode
    begin: int
    end: int
    image_size: int
    patch_size: int
    split: Split = "train"

    def __len__(self) -> int:
        return WORLD_SIZE

    def example(self, position: int, seed: int) -> Pair:
        """Return the pair of a scene; the seed chooses the text."""
        scene = sample_scene(position, self.split)
        patches = patch_labels(scene, self.image_size // self.patch_size)
        return Pair(draw(scene, self.image_size), patches, self.tell(scene, random.Random(seed)))

    def tell(self, scene: Scene, rng: random.Random) -> Told:
        """Return a text about the scene."""
        if rng.random() < REQUEST_SHARE:
            ids = list(self.encode(request_of(scene, rng.getrandbits(40), self.split).words))[:CONTENT]
            return self._told(ids, {})
        whole = rng.random() < 0.5
        room = CONTENT
        ids = []
        labels: dict[int, dict[str, int]] = {}
        if whole or rng.random() < BACKGROUND_SHARE:
            ids += self.encode(background_sentence(scene.background))
            labels[len(ids) - 2] = _ground(scene.background)  # in front of the full stop
        count = len(scene.objects) if whole else rng.randint(1, len(scene.objects))
        for item in sorted(rng.sample(scene.objects, count), key=scene.objects.index):
            sentence = self.encode(object_sentence(item))
            if len(ids) + len(sentence) > room:
                break
            ids += sentence
            labels[len(ids) - 2] = {**_labels(item), "place": PLACES.index(item.place)}
        if labels and "ground" in next(iter(labels.values())):
            labels[len(ids)] = _ground(scene.background)  # the end token
        return self._told(ids, labels)

    def _told(self, ids: list[int], labels: dict[int, dict[str, int]]) -> Told:
        padded = [self.begin, *ids, *[self.end] * (CHUNK - 1 - len(ids))]
        columns = {name: [UNLABELED] * CHUNK for name in TEXT_CLASSES}
        for index, known in labels.items():
            for name, value in known.items():
                columns[name][index + 1] = value  # behind the begin token
        return Told(padded, columns)


def _labels(item: Object) -> dict[str, int]:
    return {name: words.index(getattr(item, name)) for name, words in _OBJECT.items()}


def _ground(background: Background) -> dict[str, int]:
    return {
        "ground": _GROUND["ground"].index(background.color),
        "pattern": _GROUND["pattern"].index(background.pattern),
    }


def patch_labels(scene: Scene, side: int) -> dict[str, list[int]]:
    """Return what stands in the cell of each patch's middle, row by row; the last class is an empty cell."""
    cells = {item.cell: _labels(item) for item in scene.objects}
    empty = {name: len(words) for name, words in _OBJECT.items()}
    ground = _ground(scene.background)
    rows = [int((index + 0.5) * 3 / side) for index in range(side)]
    found = [cells.get((row, column), empty) | ground for row in rows for column in rows]
    return {name: [labels[name] for labels in found] for name in PATCH_CLASSES}


def collate(pairs: list[Pair], seeds: list[int]) -> Batch:
    """Stack pairs; labels are int64 (b, 77) and (b, patches) by name, behind `text.` and `patch.`."""
    batch = collate_seen([Seen(pair.pixels, pair.patches) for pair in pairs], seeds)
    batch["input_ids"] = torch.tensor([pair.told.ids for pair in pairs])
    batch |= {f"text.{name}": torch.tensor([pair.told.labels[name] for pair in pairs]) for name in TEXT_CLASSES}
    return batch


def collate_seen(seen: list[Seen], seeds: list[int]) -> Batch:
    """Stack pictures, uint8 (b, side, side, 3), and their labels, int64 (b, patches) by name, behind `patch.`."""
    batch: Batch = {"pixels": torch.from_numpy(np.stack([each.pixels for each in seen]))}
    return batch | {f"patch.{name}": torch.tensor([each.patches[name] for each in seen]) for name in PATCH_CLASSES}


@cache
def _normalization(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    shape = (1, 3, 1, 1)
    return torch.tensor(IMAGE_MEAN, device=device).view(shape), torch.tensor(IMAGE_STD, device=device).view(shape)


class Aligned(torch.nn.Module):
    """Both encoders with their projections and the linear readings that only training has."""

    def __init__(self, text_encoder: Any, vision_tower: Any) -> None:
        super().__init__()
        self.text_encoder, self.vision_tower = text_encoder, vision_tower
        width, patch_width = text_encoder.config.hidden_size, vision_tower.config.hidden_size
        self.text_projection = torch.nn.Linear(width, width, bias=False)
        self.visual_projection = torch.nn.Linear(patch_width, width, bias=False)
        self.logit_scale = torch.nn.Parameter(torch.tensor(2.6593))  # ln(1/0.07), as CLIP begins
        self.text_readings = torch.nn.Linear(width, sum(TEXT_CLASSES.values()))
        self.patch_readings = torch.nn.Linear(patch_width, sum(PATCH_CLASSES.values()))

    def forward(
        self, input_ids: torch.Tensor, pixels: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """Return (text x picture logits (b, b), token logits by name, patch logits by name)."""
        text = self.text_encoder(input_ids=input_ids)
        vision = _seen(self.vision_tower, pixels)
        texts = F.normalize(self.text_projection(text.pooler_output), dim=-1)
        pictures = F.normalize(self.visual_projection(vision.pooler_output), dim=-1)
        logits = self.logit_scale.clamp(max=4.6052).exp() * texts @ pictures.T  # at most 100, as CLIP
        tokens = self.text_readings(text.last_hidden_state).split(list(TEXT_CLASSES.values()), dim=-1)
        return (
            logits,
            dict(zip(TEXT_CLASSES, tokens, strict=True)),
            _patch_logits(self.patch_readings, vision),
        )


class Sighted(torch.nn.Module):
    """A vision tower with linear readings of its patches."""

    def __init__(self, vision_tower: Any) -> None:
        super().__init__()
        self.vision_tower = vision_tower
        self.patch_readings = torch.nn.Linear(vision_tower.config.hidden_size, sum(PATCH_CLASSES.values()))

    def forward(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return patch logits by name, (b, patches, classes)."""
        return _patch_logits(self.patch_readings, _seen(self.vision_tower, pixels))


def _seen(vision_tower: Any, pixels: torch.Tensor) -> Any:
    """Return what a tower makes of uint8 pictures, with all hidden states."""
    mean, std = _normalization(pixels.device)
    inputs = (pixels.permute(0, 3, 1, 2).float().div(255) - mean) / std
    return vision_tower(pixel_values=inputs, output_hidden_states=True)


def _patch_logits(readings: Any, vision: Any) -> dict[str, torch.Tensor]:
    """Read the layer that language models read."""
    logits = readings(vision.hidden_states[-2][:, 1:]).split(list(PATCH_CLASSES.values()), dim=-1)
    return dict(zip(PATCH_CLASSES, logits, strict=True))


def sight_loss_of(model: Any, batch: Batch) -> dict[str, torch.Tensor]:
    """Return the cross-entropies of a tower's readings, and how many are right: of all, and of objects' shapes.

    Most patches are empty. What patches of objects say counts once more, and their shapes, the hardest of all, twice
    more: so a tower read 93 % of the shapes after 51,000 pictures; with the plain mean 24 % after 26,000.
    """
    logits = model(batch["pixels"])
    loss, right = _read(logits, batch, "patch")
    is_object = batch["patch.shape"] != PATCH_CLASSES["shape"] - 1
    for name in _OBJECT:
        of_objects = F.cross_entropy(logits[name][is_object].float(), batch[f"patch.{name}"][is_object])
        loss = loss + (2 if name == "shape" else 1) * of_objects
    found = (logits["shape"].argmax(-1) == batch["patch.shape"])[is_object]
    return {"loss": loss, "right": right, "shapes_right": found.float().mean()}


def loss_of(model: Any, batch: Batch) -> dict[str, torch.Tensor]:
    """Return contrast plus the mean cross-entropies of both kinds of readings, and how many readings were right."""
    logits, tokens, patches = model(batch["input_ids"], batch["pixels"])
    own = torch.arange(len(logits), device=logits.device)
    contrast = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
    text, text_right = _read(tokens, batch, "text")
    patch, patch_right = _read(patches, batch, "patch")
    matched = (logits.argmax(0) == own).float().mean()
    return {
        "loss": contrast + text + patch,
        "contrast": contrast,
        "text": text,
        "patch": patch,
        "text_right": text_right,
        "patch_right": patch_right,
        "matched": matched,
    }


def _read(logits: dict[str, torch.Tensor], batch: Batch, kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the sum over attributes of the mean cross-entropy, and the share of right readings."""
    losses, right = [], []
    for name, logit in logits.items():
        labels, found = batch[f"{kind}.{name}"].flatten(), logit.flatten(0, 1).float()
        known = (labels != UNLABELED).sum().clamp(min=1)  # a small batch may know nothing of an attribute
        losses.append(F.cross_entropy(found, labels, reduction="sum") / known)
        right.append((found.argmax(-1) == labels).sum() / known)
    return torch.stack(losses).sum(), torch.stack(right).mean()
