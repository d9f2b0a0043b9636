"""`python -m training.tiny`: the tiny pair from nothing, with its figures and cards; see `--help`."""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import training.tiny

PAIR = Path("models/llmga-tiny")
STEPS = ("train", "ship", "measure", "cards")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m training.tiny",
        description=training.tiny.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("steps", nargs="*", metavar="STEP", help=f"of {', '.join(STEPS)} (default: all, in this order)")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="stages to train, or figures to measure, by name")
    parser.add_argument("--folder", type=Path, default=Path(), help="folder that gets runs/ (default: this one)")
    parser.add_argument(
        "--bases", type=Path, help="folder with `vae` and `clip` to begin with, which then do not learn"
    )
    parser.add_argument("--pair", type=Path, default=PAIR, help=f"folder of the pair (default {PAIR})")
    parser.add_argument("--count", type=int, default=200, help="scenes of each figure (default 200)")
    parser.add_argument("--small", action="store_true", help="minutes in place of hours, and worse for it: a rehearsal")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    unknown = sorted(set(options.steps) - set(STEPS))
    if unknown:
        parser.error(f"no step {', '.join(unknown)}; there are {', '.join(STEPS)}")
    if options.count < 1:
        parser.error("--count is at least 1")

    from training.tiny import chain

    steps = options.steps or STEPS
    known = {*chain.NAMES, *_figures()}
    if wrong := sorted(set(options.only or ()) - known):
        parser.error(f"nothing is called {', '.join(wrong)}; there are {', '.join(sorted(known))}")
    if "train" in steps:
        if options.bases is not None:
            if not all((options.bases / name).is_dir() for name in ("vae", "clip")):
                parser.error(f"--bases: {options.bases} has no folders vae and clip")
            chain.take_bases(options.bases, options.folder)
        names = [name for name in chain.NAMES if options.only is None or name in options.only]
        try:
            chain.train(options.folder, only=names, small=options.small)
        except chain.Interrupted as interrupted:
            sys.stderr.write(f"error: {interrupted}\n")
            return 1
    return _finish(options, steps)


def _figures() -> tuple[str, ...]:
    from training.tiny.card import COMMAND

    return tuple(COMMAND)


def _finish(options: argparse.Namespace, steps: Sequence[str]) -> int:
    """Ship, measure and write the cards."""
    from training.evaluation.figures import Sample
    from training.tiny import card, figures, pair

    if "ship" in steps:
        try:
            parts = pair.put_together(options.folder, options.pair)
        except pair.TooLarge as error:
            sys.stderr.write(f"error: {error}\n")
            return 1
        sys.stderr.write(f"{options.pair}: {', '.join(parts) or 'nothing is made yet'}\n")
    if "measure" in steps:
        before = options.folder / "runs" / "sd15-short" / "checkpoint"
        only = [name for name in options.only or () if name in _figures()]
        figures.measure(options.pair, before if before.is_dir() else None, Sample(options.count), only)
    if "cards" in steps:
        for part in pair.PARTS:
            if (options.pair / part.name).is_dir():
                card.write_card(options.pair / part.name, part.name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
