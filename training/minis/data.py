"""A handful of items in each published format, with their pictures, for dry runs."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from training.world import caption_of, draw, sample_scene

ITEMS = 3


def write_data(folder: Path) -> None:
    """Write `KIND.json` for each kind of `training.data.formats`, and the pictures, to an empty or missing folder."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    files: dict[str, list[dict[str, Any]]] = {}
    for number in range(ITEMS):
        scene = sample_scene(number)
        image, caption = f"images/{number}.png", caption_of(replace(scene, objects=scene.objects[:1]))
        Image.fromarray(draw(scene, size=64)).save(folder / image)
        words = f"{scene.objects[0].color} {scene.objects[0].shape}"
        said = [("human", "What is this?\n<image>"), ("gpt", caption), ("human", "Again?"), ("gpt", words)]
        items: dict[str, dict[str, Any]] = {
            "text_to_image": {"ori_caption": words, "caption": caption, "image": image},
            "similar_image": {"image": image, "caption": caption},
            "inpainting": {"image": image, "caption": caption},
            "edit": {"image": image, "instruction": f"Add a {words}", "new_caption": caption},
            "dialogue": {
                "image": image,
                "conversations": [{"from": role, "value": value} for role, value in said],
            },
        }
        for kind, item in items.items():
            files.setdefault(kind, []).append(item)
    for kind, found in files.items():
        (folder / f"{kind}.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
