"""The command line of the restoration steps."""

import sys
from collections.abc import Sequence

import training.restoration
from training.recipes import options
from training.restoration.recipe import STAGE, RestorationRecipe


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    about = training.restoration.__doc__
    given = options("training.restoration", about, RestorationRecipe, STAGE, arguments)
    from services.diffusion.checkpoints import UnfitCheckpoint
    from training.data.formats import DataError
    from training.restoration.adversary import MissingWeights
    from training.restoration.dry import dry_run
    from training.restoration.steps import train
    from training.runs import PlanError

    try:
        run = dry_run if given.dry_run else train
        run(given.recipe)
    except (UnfitCheckpoint, MissingWeights, DataError, PlanError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
