"""`python -m services.mllm.checkpoints SOURCE TARGET`: convert a published LLMGA checkpoint."""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from services.mllm.checkpoints.conversion import convert
from services.mllm.checkpoints.errors import CheckpointError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command: the report goes to standard output as JSON, progress to standard error."""
    parser = argparse.ArgumentParser(
        prog="python -m services.mllm.checkpoints",
        description="Convert a published LLMGA checkpoint to the Hugging Face LLaVA layout; print a report.",
    )
    parser.add_argument("source", type=Path, help="folder in the published layout")
    parser.add_argument("target", type=Path, help="folder to write; must not exist, or hold this conversion")
    parser.add_argument("--name", help="published name, where the folder's own does not tell the family")
    parser.add_argument("--tower", type=Path, help="folder of a CLIP model to use in place of the checkpoint's copy")
    options = parser.parse_args(arguments)
    try:
        facts = convert(
            options.source,
            options.target,
            name=options.name,
            tower=options.tower,
            progress=_say,
        )
    except CheckpointError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    sys.stdout.write(json.dumps(asdict(facts), indent=2, ensure_ascii=False) + "\n")
    return 0


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")


if __name__ == "__main__":
    sys.exit(main())
