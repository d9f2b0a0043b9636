"""Stage 1: language model and projector learn the mixture of LLMGA.md §7.2; the tower stays as it is.

    accelerate launch --config_file training/accelerate/zero3.yaml -m training.stage1 \\
        --recipe training/recipes/stage1-qwen2-0.5b.yaml

On a CPU, the tiny one: `python -m training.stage1 --recipe training/recipes/tiny-stage1.yaml`; in two processes:
`accelerate launch --config_file training/accelerate/cpu.yaml -m training.stage1 ...`. The recipe's `out` gets the loss
curve, `meta.json` and `checkpoint/`, which is in the published LLMGA layout: serving takes it as it is. `--dry-run`
shows in seconds that everything fits together. Start it again and it goes on where it was.
"""

import logging
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from training.recipes.command import options
from training.recipes.mllm import MLLMRecipe


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    given = options("training.stage1", __doc__, MLLMRecipe, "stage1", arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    if given.dry_run:
        with tempfile.TemporaryDirectory() as folder:
            dry_run(given.recipe, given.path, Path(folder))
        return 0
    run(given.recipe, given.path)
    return 0


def run(recipe: MLLMRecipe, path: Path) -> Path:
    """Train and write the checkpoint; return its folder."""
    from training.mllm import export_recipe, fit_recipe

    return export_recipe(recipe, fit_recipe(recipe, path))


def dry_run(recipe: MLLMRecipe, path: Path, folder: Path) -> None:
    """Two steps on mini checkpoints in a folder, with a save, a resume and an export that serving's converter takes."""
    from services.mllm.checkpoints import convert
    from training.mllm import dry_recipe, export_recipe, fit_recipe
    from training.runs.resuming import run_twice

    recipe = dry_recipe(recipe, folder)
    fitted = run_twice(lambda: fit_recipe(recipe, path), recipe.out)
    facts = convert(export_recipe(recipe, fitted), folder / "served")
    logging.getLogger("llmga.training").info("dry run: %s, %d parameters", facts.family, facts.parameters)


if __name__ == "__main__":
    sys.exit(main())
