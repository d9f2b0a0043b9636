"""`python -m training.world TARGET --count 20000 --split train --seed 0`: training data of the tiny world.

The published JSON formats below TARGET/jsons, PNGs below TARGET/imgs, and meta.json, which says what was written. On
two CPU cores 20,000 items of each kind with all pictures take some minutes; `--pictures` without names writes none.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from training.world.splits import SPLITS


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m training.world", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("target", type=Path, help="an empty or missing folder")
    parser.add_argument("--count", type=int, default=20_000, help="items of each kind (default 20000)")
    parser.add_argument("--split", choices=SPLITS, default="train", help="compositions and phrasings (default train)")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other scenes (default 0)")
    parser.add_argument("--chinese", type=float, default=0.35, help="share of Chinese requests (default 0.35)")
    parser.add_argument(
        "--pictures", nargs="*", choices=("T2I", "world", "Edit"), help="kinds of pictures to write (default: all)"
    )
    parser.add_argument(
        "--tell-changes", action="store_true", help="answers to a change first say in words what changes"
    )
    options = parser.parse_args(arguments)
    if options.count < 1 or not 0 <= options.chinese <= 1:
        parser.error("--count is at least 1, --chinese from 0 to 1")
    if options.target.exists() and (not options.target.is_dir() or any(options.target.iterdir())):
        sys.stderr.write(f"error: {options.target} is not an empty folder; name another target\n")
        return 1

    from training.world.corpus import PICTURES, Corpus, write_corpus

    pictures = PICTURES if options.pictures is None else tuple(kind for kind in PICTURES if kind in options.pictures)
    corpus = Corpus(options.count, options.split, options.seed, options.chinese, pictures, options.tell_changes)
    for name, count in write_corpus(corpus, options.target).items():
        sys.stderr.write(f"{name}: {count} items\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
