"""Stage 0: the projector learns to say what the tower sees; nothing else changes (LLMGA.md §7.1).

    accelerate launch --config_file training/accelerate/zero2.yaml -m training.pretrain \\
        --recipe training/recipes/pretrain-qwen2-0.5b.yaml

On a CPU, the tiny one: `python -m training.pretrain --recipe training/recipes/tiny-pretrain.yaml`. It writes
`mm_projector.safetensors` into the recipe's `out`, beside the loss curve and `meta.json`; `--dry-run` shows in seconds
that everything fits together. Start it again and it goes on where it was.
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
    given = options("training.pretrain", __doc__, MLLMRecipe, "pretrain", arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    if given.dry_run:
        with tempfile.TemporaryDirectory() as folder:
            dry_run(given.recipe, given.path, Path(folder))
        return 0
    run(given.recipe, given.path)
    return 0


def run(recipe: MLLMRecipe, path: Path) -> Path:
    """Train and write the projector; return its file."""
    from training.export import export_projector
    from training.llava import PROJECTOR_FILE
    from training.mllm import fit_recipe

    target = recipe.out / PROJECTOR_FILE
    fitted = fit_recipe(recipe, path)
    tensors = fitted.state_dict()
    if fitted.is_main:
        prefix = "projector."
        export_projector(target, {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)})
    return target


def dry_run(recipe: MLLMRecipe, path: Path, folder: Path) -> None:
    """Two steps on mini checkpoints in a folder, with a save, a resume and an export that is read again."""
    from training.llava import read_projector
    from training.mllm import dry_recipe, fit_recipe
    from training.runs.resuming import run_twice

    recipe = dry_recipe(recipe, folder)
    fitted = run_twice(lambda: fit_recipe(recipe, path), recipe.out)
    fitted.model.projector.load_state_dict(read_projector(run(recipe, path)))


if __name__ == "__main__":
    sys.exit(main())
