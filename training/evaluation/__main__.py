"""`python -m training.evaluation FIGURE …`: one figure of the tiny pair as a table, and as JSON with `--out`.

| figure | what is measured | needs |
|---|---|---|
| `long-captions` | (a) long captions, drawn as they are | `--sd` or `--url` |
| `requests` | (b) short requests, with and without the language model | `--sd --mllm`, or `--url` |
| `similar` | (c) pictures, described for one like them | `--mllm`, `--url` or `--mllm-url` |
| `edits` | (d) the new captions of edited pictures | `--mllm` or `--mllm-url` |
| `edited` | pictures, edited by instructions | `--url` |
| `inpainting` | (e) holes, filled by the caption | `--inpainting` or `--url`, also `--mllm` |
| `restoration` | (f) seams and PSNR of degraded holes | `--restoration`, or `--url --relit` |
| `chinese` | (g) as (b), in Chinese | as (b) |
| `stage2` | (h) long prompts before and after stage 2 | `--before`, `--sd` |

Folders are read in this process: `--sd` and `--inpainting` in diffusers layout, `--mllm` in the published layout,
`--restoration` a restoration checkpoint, `--relit` checkpoints that leave seams (`training.evaluation.relit`), which a
gateway is to serve. `--url` is a running gateway, `--mllm-url` a running language model service.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from training.world.splits import SPLITS

if TYPE_CHECKING:
    from training.evaluation.figures import Figure
    from training.evaluation.painting import FolderPainter, Painter
    from training.evaluation.serving import Gateway
    from training.evaluation.writing import Writer

FIGURES = (
    "long-captions", "requests", "similar", "edits", "edited", "inpainting", "restoration", "chinese", "stage2",
)  # fmt: skip
_WITHOUT_PICTURES = frozenset({"edits", "restoration"})  # restoration draws its own sheet


class _Missing(Exception):
    """A figure needs something that was not given."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m training.evaluation", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("figure", choices=FIGURES, help="which figure")
    parser.add_argument("--sd", type=Path, help="text-to-image checkpoint")
    parser.add_argument("--before", type=Path, help="text-to-image checkpoint before stage 2")
    parser.add_argument("--inpainting", type=Path, help="inpainting checkpoint, 9 channels")
    parser.add_argument("--mllm", type=Path, help="LLMGA checkpoint")
    parser.add_argument("--restoration", type=Path, help="restoration checkpoint")
    parser.add_argument("--relit", type=Path, help="folder of checkpoints that leave seams, for the figure restoration")
    parser.add_argument("--url", help="a running gateway, for --sd and --mllm")
    parser.add_argument("--mllm-url", help="a running language model service, for --mllm")
    parser.add_argument("--count", type=int, default=200, help="scenes (default 200)")
    parser.add_argument("--split", choices=SPLITS, default="held_out", help="default held_out")
    parser.add_argument("--seed", type=int, default=0, help="number of the first scene (default 0)")
    parser.add_argument("--steps", type=int, help="denoising steps (default: the checkpoint's)")
    parser.add_argument("--guidance", type=float, help="guidance scale (default: the checkpoint's)")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--sheet", type=Path, help="PNG file to write: pictures side by side (see `figures`)")
    options = parser.parse_args(arguments)
    if options.count < 1:
        parser.error("--count is at least 1")
    if options.sheet and options.figure in _WITHOUT_PICTURES:
        parser.error(f"the figure '{options.figure}' has no pictures for a --sheet")
    from training.evaluation.serving import Unserved

    try:
        figure = _make(options)
    except _Missing as missing:
        parser.error(str(missing))
    except Unserved as unserved:
        sys.stderr.write(f"error: {unserved}\n")
        return 1
    from training.evaluation.report import contact_sheet, table

    sys.stdout.write(table(figure))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(figure.to_json(), indent=2) + "\n", encoding="utf-8")
    if options.sheet:
        options.sheet.parent.mkdir(parents=True, exist_ok=True)
        contact_sheet(figure.pairs).save(options.sheet, optimize=True)
    return 0


def _make(options: argparse.Namespace) -> "Figure":
    from training.evaluation import figures

    sample = figures.Sample(options.count, options.split, options.seed)
    match options.figure:
        case "long-captions":
            return figures.long_captions(sample, _painter(options))
        case "requests":
            return figures.requests(sample, _painter(options), _writer(options))
        case "chinese":
            return figures.requests(sample, _painter(options), _writer(options), "zh")
        case "similar":
            return figures.similar(sample, _writer(options), _painter(options) if options.sd or options.url else None)
        case "edits":
            return figures.edits(sample, _writer(options))
        case "edited":
            return figures.edited(sample, _gateway(options))
        case "inpainting":
            writer = _writer(options) if options.mllm or options.mllm_url else None
            filler = _gateway(options) if options.url else _folder_painter(options, "inpainting")
            return figures.inpainting(sample, filler, writer)
        case "restoration":
            relit = _given(options, "relit") if options.url or options.relit else None
            if relit and not any(relit.glob("*/model_index.json")):
                raise _Missing(f"--relit: there are no checkpoints in {relit}; `training.evaluation.relit` writes them")
            if options.url and relit:
                return figures.restored(sample, _gateway(options), relit)
            from services.diffusion.restoration.restorer import Restorer

            return figures.restoration(sample, Restorer.load(_given(options, "restoration")), relit)
        case _:
            return figures.stage2(sample, _folder_painter(options, "before"), _painter(options))


def _painter(options: argparse.Namespace) -> "Painter":
    return _gateway(options) if options.url else _folder_painter(options, "sd")


def _gateway(options: argparse.Namespace) -> "Gateway":
    if not options.url:
        raise _Missing(f"the figure '{options.figure}' needs --url")
    from training.evaluation.serving import Gateway

    return Gateway(options.url)


def _folder_painter(options: argparse.Namespace, name: str) -> "FolderPainter":
    folder = _given(options, name)
    from training.evaluation.painting import FolderPainter

    return FolderPainter(folder, num_inference_steps=options.steps, guidance_scale=options.guidance)


def _writer(options: argparse.Namespace) -> "Writer":
    if options.mllm_url:
        from training.evaluation.serving import LanguageModel

        return LanguageModel(options.mllm_url)
    if options.url and not options.mllm:
        return _gateway(options)
    folder = _given(options, "mllm")
    from training.evaluation.writing import FolderWriter

    return FolderWriter(folder)


def _given(options: argparse.Namespace, name: str) -> Path:
    folder: Path | None = getattr(options, name)
    if folder is None:
        raise _Missing(f"the figure '{options.figure}' needs --{name}")
    if not folder.is_dir():
        raise _Missing(f"--{name}: there is no folder {folder}")
    return folder


if __name__ == "__main__":
    sys.exit(main())
