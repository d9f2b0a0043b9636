"""Model cards: what a part is, how it was made, and every figure, from its `meta.json` and `figures.json`."""

import json
from pathlib import Path
from typing import Any

from training.evaluation.figures import Figure, Sample
from training.evaluation.report import table
from training.tiny.figures import SHEET, load

CARD = "README.md"
COMMAND = {
    "long-captions": "long-captions --sd models/llmga-tiny/sd15",
    "stage2": "stage2 --before runs/sd15-short/checkpoint --sd models/llmga-tiny/sd15",
    "requests": "requests --mllm models/llmga-tiny/mllm --sd models/llmga-tiny/sd15",
    "chinese": "chinese --mllm models/llmga-tiny/mllm --sd models/llmga-tiny/sd15",
    "similar": "similar --mllm models/llmga-tiny/mllm",
    "edits": "edits --mllm models/llmga-tiny/mllm",
    "inpainting": "inpainting --inpainting models/llmga-tiny/sd15-inpainting --mllm models/llmga-tiny/mllm",
    "restoration": "restoration --restoration models/llmga-tiny/restoration",
}
ABOUT = {
    "mllm": (
        "LLMGA tiny: the language model",
        "It writes the caption of a picture from a request, in English or Chinese, or from a picture, and is asked in "
        "Qwen2's form. Published LLMGA layout: a small Qwen2, a projector, and a CLIP tower of its own (128 pixels, 64 "
        "patches).",
        ("language", "pretrain", "stage1", "tower", "pretrain-sight", "sight", "lists", "sessions", "again"),
    ),
    "sd15": (
        "LLMGA tiny: text to image",
        "It draws long captions of the tiny world, 128 x 128 pixels. SD1.5's layout: an autoencoder of factor 8, a "
        "CLIP text encoder, a UNet on latents of 16 x 16 that predicts velocity.",
        ("vae", "clip", "sd15-base", "sd15"),
    ),
    "sd15-inpainting": (
        "LLMGA tiny: inpainting",
        "The text-to-image model with nine input channels: it fills holes by a caption of the whole picture.",
        ("sd15-inpaint",),
    ),
    "restoration": (
        "LLMGA tiny: restoration",
        "DiffRIR at scale 1 and a smaller width: it takes away the steps in brightness and color that a painted hole "
        "has at its border.",
        ("restoration-s1", "restoration-s2"),
    ),
}


def write_card(folder: Path, part: str) -> None:
    """Write the card of a part's folder."""
    (folder / CARD).write_text(card(part, _meta(folder), load(folder), has_sheet=(folder / SHEET).is_file()), "utf-8")


def card(part: str, meta: dict[str, Any], figures: dict[str, Any], *, has_sheet: bool) -> str:
    """Return a card in Markdown."""
    title, about, recipes = ABOUT[part]
    names = ", ".join(f"`tiny-{recipe}.yaml`" for recipe in recipes)
    lines = [
        f"# {title}",
        "",
        about,
        "",
        "Everything was learned from scenes that `training.world` draws, of its train split, from nothing; there is no "
        "other data in it. It knows colored shapes on nine places, and some ninety things built from them. Apache-2.0.",
        "",
        "## How it was made",
        "",
        "| | |",
        "|---|---|",
        f"| recipes | {names}, by `make tiny` |",
        *(f"| {name} | {value} |" for name, value in _facts(meta)),
        "",
    ]
    if (figures_lines := _figures(figures)) != []:
        lines += ["## Figures", "", *figures_lines]
    if has_sheet:
        lines += [f"![pairs of pictures]({SHEET})", ""]
    return "\n".join(lines)


def _facts(meta: dict[str, Any]) -> list[tuple[str, str]]:
    if not meta:
        return []
    hardware = meta["hardware"]
    machine = hardware.get("gpu") or f"{hardware['cpu_cores']} cores of {hardware['cpu']}"
    losses = ", ".join(f"{name} {value:.4g}" for name, value in sorted(meta["losses"].items()))
    return [
        ("last run: steps", f"{meta['step']:,} of {meta['plan']['global_batch']} examples"),
        ("last run: hours", f"{meta['hours']:.2f}, on {machine} shared with other work"),
        ("last run: parameters that learned", f"{meta['trainable_parameters']:,}"),
        ("last run: losses at its end", losses),
        ("commit", f"{meta['commit']}"),
        ("versions", ", ".join(f"{name} {version}" for name, version in meta["versions"].items())),
    ]


def _figures(figures: dict[str, Any]) -> list[str]:
    lines: list[str] = []
    for name, stored in figures.items():
        figure = Figure(stored["name"], stored["goal"], Sample(**stored["sample"]), stored["rows"])
        if (command := COMMAND.get(name)) is not None:
            lines += [f"`python -m training.evaluation {command}`", ""]
        lines += [table(figure)]
    return lines


def _meta(folder: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    return found
