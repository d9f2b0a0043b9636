"""Every figure of the pair's parts, measured with the functions of `training.evaluation` and kept as JSON.

`figures.json` in a part's folder holds its figures by name; what is measured again replaces what was there.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from training.evaluation.figures import (
    Figure,
    Sample,
    edits,
    inpainting,
    long_captions,
    requests,
    restoration,
    similar,
    stage2,
)
from training.runs.records import write_json

FIGURES = "figures.json"
SHEET = "sheet.png"  # one contact sheet in each part's folder

Measure = Callable[[], Figure]


def measures(pair: Path, before: Path | None, sample: Sample) -> Iterator[tuple[str, str, Measure]]:
    """Yield (part, name, how it is measured) of the figures for which the pair has the models.

    before: the text-to-image checkpoint from before stage 2, which does not ship.
    """
    mllm, sd15, filling = pair / "mllm", pair / "sd15", pair / "sd15-inpainting"
    if (sd15 / "model_index.json").is_file():
        yield "sd15", "long-captions", lambda: long_captions(sample, _painter(sd15))
        if before is not None:
            yield "sd15", "stage2", lambda: stage2(sample, _painter(before), _painter(sd15))
    if (mllm / "config.json").is_file():
        if (sd15 / "model_index.json").is_file():
            yield "mllm", "requests", lambda: requests(sample, _painter(sd15), _writer(mllm))
            yield "mllm", "chinese", lambda: requests(sample, _painter(sd15), _writer(mllm), "zh")
        yield "mllm", "similar", lambda: similar(sample, _writer(mllm))
        yield "mllm", "edits", lambda: edits(sample, _writer(mllm))
    if (filling / "model_index.json").is_file():
        writer = (lambda: _writer(mllm)) if (mllm / "config.json").is_file() else (lambda: None)
        yield "sd15-inpainting", "inpainting", lambda: inpainting(sample, _painter(filling), writer())
    if (pair / "restoration" / "config.json").is_file():
        yield "restoration", "restoration", lambda: _restoration(pair / "restoration", sample)


def measure(pair: Path, before: Path | None, sample: Sample, only: Sequence[str] = ()) -> dict[str, list[str]]:
    """Measure and store; return the names of the figures by part."""
    from training.evaluation.report import contact_sheet

    measured: dict[str, list[str]] = {}
    for part, name, how in measures(pair, before, sample):
        if only and name not in only:
            continue
        figure = how()
        store(pair / part, name, figure.to_json())
        measured.setdefault(part, []).append(name)
        if figure.pairs and name in ("long-captions", "requests", "inpainting"):
            contact_sheet(figure.pairs).quantize(256).save(pair / part / SHEET, optimize=True)
    return measured


def store(folder: Path, name: str, figure: dict[str, Any]) -> None:
    """Put a figure among those of a part."""
    write_json(folder / FIGURES, load(folder) | {name: figure})


def load(folder: Path) -> dict[str, Any]:
    """Return the figures of a part, by name."""
    try:
        found: dict[str, Any] = json.loads((folder / FIGURES).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    return found


def _painter(folder: Path) -> Any:
    from training.evaluation.painting import FolderPainter

    return FolderPainter(folder)


def _writer(folder: Path) -> Any:
    from training.evaluation.writing import FolderWriter

    return FolderWriter(folder)


def _restoration(folder: Path, sample: Sample) -> Figure:
    from services.diffusion.restoration.restorer import Restorer

    return restoration(sample, Restorer.load(folder))
