"""The command line that all stages share: `--recipe`, `--out`, `--set`, `--dry-run`. It imports no torch."""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic

from training.recipes.recipe import R, RecipeError, load_recipe


@dataclass(frozen=True)
class Options(Generic[R]):
    """What the command line asked for."""

    recipe: R
    path: Path
    dry_run: bool


def run(
    module: str,
    about: str | None,
    schema: type[R],
    stage: str,
    arguments: Sequence[str] | None,
    *,
    train: Callable[[R], object],
    dry_run: Callable[[R], object],
) -> int:
    """Run a stage that needs nothing but its recipe; return the exit status. See `options` for the arguments."""
    given = options(module, about, schema, stage, arguments)
    (dry_run if given.dry_run else train)(given.recipe)
    return 0


def options(
    module: str, about: str | None, schema: type[R], stage: str, arguments: Sequence[str] | None = None
) -> Options[R]:
    """Parse a stage's command line; exits with status 2 and one line where it or the recipe is wrong.

    module: as it is started, `training.stage1`. about: the stage's docstring. stage: what its recipes name.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m {module}", description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipe", type=Path, required=True, help="YAML file, such as those in training/recipes/")
    parser.add_argument("--out", type=Path, help="the run's folder, in place of the recipe's")
    parser.add_argument(
        "--set",
        action="extend",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="other values: --set plan.steps=100 plan.learning_rate=1e-5",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="two steps, a save, a resume and an export on a random mini checkpoint; nothing else is read or written",
    )
    given = parser.parse_args(arguments)
    changes = [*given.set, *([f"out={given.out}"] if given.out else [])]
    try:
        recipe = load_recipe(given.recipe, schema, changes)
        if recipe.stage != stage:
            raise RecipeError(f"{given.recipe}: it is for the stage {recipe.stage!r}, this is {stage!r}")
    except RecipeError as error:
        parser.exit(2, f"{parser.prog}: error: {error}\n")
    return Options(recipe, given.recipe, given.dry_run)
